"""The composition root: RunSpec -> RunResult. `python -m harness.run FOLDER` runs the spec.json of a run folder."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from algorithms.checks import range_warning
from harness import NUMERICS_VERSION
from harness.assemble import Assembly, assemble
from harness.core.errors import HarnessError, InfrastructureError, UsageError
from harness.core.provenance import collect as collect_provenance
from harness.core.resolve import deviations
from harness.core.results import RESULT, SPEC, EvalRecord, RunResult, RunStatus
from harness.core.routing_log import ROUTING
from harness.core.runwriter import RunWriter
from harness.core.spec import RunSpec
from harness.core.types import RolloutGroup
from harness.evaluate.heldout import evaluate
from harness.gate import Gate, engine_of
from harness.probing import probing
from harness.records import rollout_file, routing_of_step, step_row, train_samples, validation_samples
from harness.rollout.order import held_out_prompts
from harness.saving import Checkpoints, begin_elsewhere
from harness.train import checkpoint
from harness.train.calibrate import calibrate, drift_sd
from harness.train.loop import Progress, StepOutcome, train
from harness.watching import Watching

INTERRUPTED = 130


def execute(spec: RunSpec, folder: Path, command: Sequence[str] = ()) -> RunResult | None:
    """Runs or continues a run until its budget is spent. None: interrupted, resumable.

    A finished run is returned as it is. Everything before the first checkpoint is done again after a kill.
    """
    if spec.numerics_version != NUMERICS_VERSION:
        raise UsageError(
            f"a run of numerics version {spec.numerics_version}",
            f"this version computes with {NUMERICS_VERSION}, and mixing both in one run would be silent",
            "a new study, or the version of the harness that began this run",
        )
    known = _finished(folder)
    if known is not None:
        return known
    writer = RunWriter(folder, spec)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Another process may have finished it while this one waited for the lock.
        return _finished(folder) or _run(spec, writer, list(command))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()


def _run(spec: RunSpec, writer: RunWriter, command: list[str]) -> RunResult | None:
    run = _Run(spec, writer, command)
    try:
        return run.go()
    finally:
        run.parts.sampler.close()


def _finished(folder: Path) -> RunResult | None:
    """The result of a run that need not be repeated."""
    path = folder / RESULT
    known = RunResult.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None
    return None if known is None or known.status == "infra_failed" else known


class _Run:
    """The mutable side of one execution: progress, files, the stop flag."""

    def __init__(self, spec: RunSpec, writer: RunWriter, command: list[str]) -> None:
        self.spec, self.writer = spec, writer
        self.provenance = collect_provenance(command)
        torch.set_num_threads(spec.backend.threads)
        torch.manual_seed(spec.seed)
        self.parts: Assembly = assemble(spec)
        self.watching = Watching(self.parts, writer)
        self.progress = Progress()
        self.calibration: dict[str, float] = {}
        self.range_sd: float | None = None  # SD(log s) with which the clip range was compared
        self.gate = Gate(spec, writer.folder)
        self.evals_done = 0
        self.best_validation: float | None = None
        self.resumes = 0
        self.checkpoints = Checkpoints(writer.folder, spec.checkpoints)
        self.parent = os.getppid()
        self.stop = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self.stop = True

    def go(self) -> RunResult | None:
        """Trains to the end of the budget. A failure on the way is recorded, as far as the disk lets it, and raised."""
        try:
            return self._go()
        except Exception as error:
            with suppress(HarnessError):
                self.writer.result(self.result("infra_failed", None, f"{type(error).__name__}: {error}"))
            raise

    def _go(self) -> RunResult | None:
        self._begin()
        if self.parts.algorithm.updates.epochs == 0:  # a base-model arm has nothing to train
            return self._finish()
        if self.checkpoints.newest() is None and self.checkpoints.due(self.progress.step):
            self._save()
        for outcome in () if self.watching.over else train(self.parts.trainer, self.progress):
            self.progress = outcome.progress
            self._check_range(outcome)
            numbers, routes = routing_of_step(outcome, self.parts)
            row = step_row(outcome, self.parts, numbers)
            if routes is not None:
                self.writer.records(ROUTING, [routes])
            self.gate.step(outcome, row, self.parts)
            if self._evaluation_due():
                start = time.monotonic()
                self._validate()
                row["perf/t_eval"] = time.monotonic() - start
                self.writer.records("samples.jsonl", train_samples(outcome, self.parts))
                rollout_file(self.writer.folder, outcome)
            elif self.progress.step == 1:
                self.writer.records("samples.jsonl", train_samples(outcome, self.parts))
                rollout_file(self.writer.folder, outcome)
            self.writer.row(row)
            self.watching.step(row, outcome)
            if self.watching.over:
                break
            if self.stop or os.getppid() != self.parent:
                self._save()
                return None
            if self.checkpoints.due(self.progress.step):
                self._save()
        self._save()
        return self._finish()

    def _begin(self) -> None:
        """Restores the newest checkpoint, or starts: calibration, base score."""
        newest = self.checkpoints.newest()
        if newest is not None:
            self.progress, extra = checkpoint.load(newest, self.parts.optimizers)
            self.calibration = dict(extra["calibration"])
            self.range_sd = extra.get("range_sd")
            self.gate.restore(extra.get("gate"))
            self.evals_done, self.best_validation = int(extra["evals_done"]), extra["best_validation"]
            self.resumes = int(extra["resumes"]) + 1
            self.writer.rewind(self.progress.step)
            self.checkpoints.reread()
            self.watching.restore(extra.get("monitor"))
            self.parts = probing(self.parts.calibrated(self.calibration), self.writer.folder, None)
        else:
            self.writer.rewind(-1)
            self.watching.restore(None)
            measured: dict[str, float] = {}
            if self.spec.start is not None:
                self.progress, measured = begin_elsewhere(self.spec.start, self.spec.task, self.parts.optimizers)
            self.parts.sampler.sync(self.progress.optimizer_steps)
            self.gate.begin(self.parts)
            self._test()
            self.parts = probing(self.parts, self.writer.folder, self._validate())
            if self.parts.algorithm.surrogate.needs_calibration:
                self._calibrate(measured)
        self.parts.sampler.sync(self.progress.optimizer_steps)

    def _calibrate(self, measured: dict[str, float]) -> None:
        """Sets the clip range from what was measured for the run this one continues, or measures now."""
        if measured:
            self.calibration = measured
            self.parts = self.parts.calibrated(measured)
            return
        tensors = {"policy": _copied(self.parts.optimizers.policy.tensors())}
        if self.parts.optimizers.critic is not None:
            tensors["critic"] = _copied(self.parts.optimizers.critic.tensors())

        def restore() -> None:
            self.parts.optimizers.policy.load(tensors["policy"])
            if self.parts.optimizers.critic is not None:
                self.parts.optimizers.critic.load(tensors["critic"])

        sd, self.progress = calibrate(self.parts.trainer, self.progress, restore)
        self.calibration = {"sd_log_s": sd}
        self.parts = self.parts.calibrated(self.calibration)
        self._compare_range(sd)

    def _check_range(self, outcome: StepOutcome) -> None:
        """Compares a sequence clip range with the drift of the first step at the full learning rate; changes nothing.

        Earlier steps of a warm-up drift less than the run will.
        """
        if self.range_sd is None and outcome.fraction >= self.spec.recipe.warmup:
            sd = drift_sd(outcome.traces)
            if sd is not None:
                self._compare_range(sd)

    def _compare_range(self, sd: float) -> None:
        self.range_sd = sd
        self.gate.clip_range(range_warning(self.parts.algorithm, sd), sd)

    def _evaluation_due(self) -> bool:
        points = self.spec.eval.points
        fraction = self.spec.budget.fraction(self.progress.sampled_tokens, self.progress.step)
        return points > 0 and fraction * points >= self.evals_done

    def _validate(self) -> Sequence[RolloutGroup]:
        """Scores the validation split."""
        e = self.spec.eval
        record, groups = self._evaluate("validation", e.prompts, e.samples)
        self.writer.evaluation(record, validation_samples(record.step, groups, self.parts))
        self.watching.evaluated(record)
        fraction = self.spec.budget.fraction(self.progress.sampled_tokens, self.progress.step)
        self.evals_done = int(fraction * e.points) + 1
        if self.checkpoints.best is None or record.score > (self.best_validation or 0.0):
            self.checkpoints.best = record.step
        self.best_validation = max(record.score, self.best_validation or 0.0)
        return groups

    def _test(self) -> float:
        """Scores the test split, once per place."""
        record = self.writer.test_record(self.progress.step)
        if record is None:
            e = self.spec.eval
            record, _ = self._evaluate("test", e.final_prompts, e.final_samples)
            self.writer.evaluation(record, ())
        self.watching.evaluated(record)
        return record.score

    def _evaluate(self, split: Any, prompts: int, samples: int) -> tuple[EvalRecord, Sequence[RolloutGroup]]:
        collector = self.parts.collector
        if self.spec.eval.greedy:
            collector = replace(collector, temperature=0.0)
        return evaluate(
            lambda items, n, key: collector.collect(items, n, key).groups,
            held_out_prompts(self.parts.task, split, prompts),
            split=split,
            task=self.parts.task.info.name,
            num_samples=samples,
            step=self.progress.step,
            sampled_tokens=self.progress.sampled_tokens,
        )

    def _save(self) -> None:
        extra = {
            "calibration": self.calibration,
            "range_sd": self.range_sd,
            "gate": self.gate.state(),
            "resumes": self.resumes,
            "evals_done": self.evals_done,
            "best_validation": self.best_validation,
            "monitor": self.watching.saved(),
        }
        self.checkpoints.save(self.progress, self.parts.optimizers, extra)

    def _finish(self) -> RunResult:
        final = self._test()
        self.gate.finish(self.parts)
        result = self.result(self.watching.finish(self.progress.step), final)
        self.checkpoints.finish()
        self.writer.result(result)
        return result

    def result(self, status: RunStatus, final: float | None, error: str | None = None) -> RunResult:
        """The record of how the run ended."""
        p, facts = self.progress, self.parts
        algorithm = facts.algorithm
        return RunResult(
            run_id=self.spec.run_id,
            status=status,
            validity=self.gate.validity,
            validity_reasons=self.gate.reasons,
            validity_findings=tuple(self.gate.findings),
            error=error,
            steps=p.step,
            optimizer_steps=p.optimizer_steps,
            sampled_tokens=p.sampled_tokens,
            trained_tokens=p.trained_tokens,
            wallclock_s=p.wallclock_s,
            base_score=self.writer.first_test_score(),
            final_score=final,
            best_validation=self.best_validation,
            peak_memory_mib=facts.peak_memory_mib(),
            memory_after_import_mib=facts.memory_after_import_mib,
            parameters=facts.model.parameters,
            algorithm_resolved=algorithm.model_dump(mode="json"),
            deviations=deviations(self.spec, algorithm),
            calibration=self.calibration,
            resumes=self.resumes,
            isolation=facts.task.info.isolation,
            provenance=self.provenance.model_copy(
                update={
                    "model_sha256": facts.model.sha256,
                    "tokenizer_sha256": facts.codec.tokenizer_sha256,
                    "template_sha256": facts.codec.template_sha256,
                    "engine": engine_of(facts),
                    "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            ),
        )


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in tensors.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """`FOLDER [COMMAND ...]`: runs one folder; COMMAND is what the user typed, for the provenance.

    The exit code is 0 done, 2 usage, 4 failed, 130 interrupted.
    """
    place, *command = arguments or sys.argv[1:]
    folder = Path(place)
    try:
        spec = RunSpec.model_validate_json((folder / SPEC).read_text(encoding="utf-8"))
        return 0 if execute(spec, folder, command) is not None else INTERRUPTED
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except MemoryError as error:
        print(f"error: out of memory: {error}", file=sys.stderr, flush=True)
        return InfrastructureError.exit_code
    except Exception:
        traceback.print_exc()
        return InfrastructureError.exit_code


if __name__ == "__main__":
    sys.exit(main())
