"""The start-up self-test finds each kind of mistake of a rollout engine, and none in the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.assemble import Assembly, assemble, build_sampler
from harness.core.ports import Sampler, SingleTurnTask, Task
from harness.core.results import VALIDITY, Finding, ValidityRecord
from harness.core.types import FinishReason, Grade, Prompt
from harness.gate import Gate, engine_of
from harness.models.load import load
from harness.rollout.order import MAIN, train_prompts
from harness.selftest import golds, items_of, recomputed, sample, verifier_cases
from harness.validity.start import verifier
from tasks.chain import ChainTask
from tests.fakes import wrong_samplers as wrong
from tests.fakes.small_runs import run_spec


@pytest.fixture(scope="module")
def parts() -> Assembly:
    """A small real run before its first step."""
    return assemble(run_spec())


def started(parts: Assembly, folder: Path, sampler: Sampler | None = None, task: Task | None = None) -> Gate:
    """The gate after its start-up checks, with another sampler or task."""
    collector = replace(parts.collector, sampler=sampler or parts.sampler, task=task or parts.task)
    gate = Gate(parts.spec, folder)
    gate.begin(replace(parts, sampler=sampler or parts.sampler, collector=collector, task=task or parts.task))
    return gate


def judged(parts: Assembly, task: Task) -> Finding:
    """The verifier's finding for another task."""
    return verifier(verifier_cases(replace(parts, task=task), items_of(task)))


def of(gate: Gate, check: str) -> Finding:
    [found] = [f for f in gate.findings if f.check == check]
    return found


def test_the_real_sampler_passes_every_check(
    parts: Assembly, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = started(parts, tmp_path)
    assert [f.check for f in gate.findings] == [
        "reward-information", "verifier", "prompt", "ends", "sampler-trainer", "sampled-entropy",
    ]  # fmt: skip
    assert {f.level for f in gate.findings} == {"PASS"}
    assert gate.reasons == ()
    assert capsys.readouterr().err == ""
    gap = of(gate, "sampler-trainer").values
    assert 0 < (gap["max"] or 0) < 1e-4
    assert (gap["tokens"] or 0) > 600
    record = ValidityRecord.model_validate_json((tmp_path / VALIDITY).read_text())
    assert (record.validity, record.findings) == ("PASS", tuple(gate.findings))


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (wrong.hotter, {"sampler-trainer": "INVALID"}),
        (wrong.colder, {"sampler-trainer": "INVALID", "sampled-entropy": "WARN"}),
        (wrong.other_template, {"sampler-trainer": "INVALID", "sampled-entropy": "INVALID"}),
        (wrong.unnormalised, {"sampler-trainer": "INVALID"}),
        (wrong.likelier, {"sampled-entropy": "INVALID"}),
        (wrong.drops_ends, {"ends": "INVALID"}),
        (wrong.goes_on, {"ends": "INVALID"}),
        (wrong.calls_all_cut, {"ends": "INVALID"}),
    ],
)
def test_each_mistake_is_found(
    parts: Assembly, tmp_path: Path, mistake: Callable[[Sampler], Sampler], expected: dict[str, str]
) -> None:
    gate = started(parts, tmp_path, mistake(parts.sampler))
    found = {f.check: f.level for f in gate.findings}
    assert expected.items() <= found.items()
    assert gate.validity == "INVALID"
    assert found["verifier"] == found["prompt"] == "PASS"
    assert all(f.advice for f in gate.findings if f.level != "PASS")


def test_the_expected_variance_is_that_of_the_policy(parts: Assembly) -> None:
    """Var(-log p) at every sampled position, from all logits of the model."""
    groups = sample(parts, 35)[:2]
    total = count = 0.0
    for t in (t for g in groups for t in g.trajectories):
        ids = torch.tensor([[*t.prompt_ids, *t.response_ids]])
        with torch.no_grad():
            logits = parts.model.policy(input_ids=ids).logits[0, len(t.prompt_ids) - 1 : -1]
        logp = logits.double().log_softmax(-1)
        mean = (logp.exp() * logp).sum(-1)
        total += float((logp.exp() * (logp - mean[:, None]) ** 2).sum())
        count += len(t.response_ids)
    _, surprise = recomputed(groups, parts)
    assert surprise.tokens == count
    assert surprise.expected_variance == pytest.approx(total / count, rel=0.01)


def test_other_weights_are_found(parts: Assembly, tmp_path: Path) -> None:
    """The engine still holds another cold start."""
    other = load(parts.spec.model, seed=1, device="cpu", dtype="float32")
    gate = started(parts, tmp_path, build_sampler(parts.spec, other, parts.codec, parts.task))
    assert of(gate, "sampler-trainer").level == "INVALID"


@pytest.mark.parametrize(("heat", "level"), [(0.99, "WARN"), (0.95, "INVALID")])
def test_a_slight_heat_warns_and_a_greater_one_is_invalid(
    parts: Assembly, tmp_path: Path, heat: float, level: str
) -> None:
    gate = started(parts, tmp_path, wrong.WrongSampler(parts.sampler, heat=heat))
    assert of(gate, "sampler-trainer").level == level


def test_an_engine_of_another_precision_warns_with_the_size(tmp_path: Path) -> None:
    """bfloat16 weights sample, float32 weights train; neither side is at fault."""
    parts = assemble(run_spec())
    rough = load(parts.spec.model, seed=0, device="cpu", dtype="bfloat16")
    spec = parts.spec.model_copy(
        update={
            "backend": parts.spec.backend.model_copy(
                update={
                    "sampler": "vllm",
                    "engine": parts.spec.backend.engine.model_copy(update={"dtype": "bfloat16"}),
                }
            )
        }
    )
    sampler = build_sampler(parts.spec, rough, parts.codec, parts.task)
    gate = started(replace(parts, spec=spec), tmp_path, sampler)
    found = of(gate, "sampler-trainer")
    assert found.level == "WARN"
    assert "mixed" in found.measured
    assert 1e-4 < (found.values["mean"] or 0) < 0.06


def test_measuring_moves_no_random_stream_and_no_later_sample(parts: Assembly, tmp_path: Path) -> None:
    prompts = train_prompts(parts.task, 0, MAIN, 0, 3)
    before = parts.collector.collect(prompts, 2, (0, 0)).groups
    state = torch.get_rng_state()
    weights = {k: v.clone() for k, v in parts.model.policy.state_dict().items()}
    started(parts, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert parts.collector.collect(prompts, 2, (0, 0)).groups == before
    assert all(torch.equal(v, weights[k]) for k, v in parts.model.policy.state_dict().items())


def test_the_engine_is_recorded(parts: Assembly) -> None:
    engine = engine_of(parts)
    assert (engine.name, engine.dtype, engine.exact_repeat) == ("transformers", "float32", True)
    assert engine.version == __import__("transformers").__version__


class Spoilt(ChainTask):
    """`chain` with a grader that is wrong in one way."""

    def __init__(self, fault: str) -> None:
        super().__init__(3, 9)
        self.fault = fault

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        grade = super().grade(prompt, text, finish_reason)
        if self.fault == "refuses":
            return replace(grade, score=0.0, correct=False)
        if self.fault == "accepts":
            return replace(grade, score=1.0, correct=True)
        if self.fault == "percent":
            return replace(grade, score=100.0 * grade.score)
        if self.fault == "threshold":
            return replace(grade, correct=not grade.correct)
        if self.fault == "raises" and not text:
            raise ZeroDivisionError("division by zero")
        return grade


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuses", "24 of 24 right responses refused"),
        ("accepts", "24 of 24 wrong ones accepted"),
        ("percent", "24 grades outside the declared range"),
        ("threshold", "48 grades outside the declared range or at odds"),
        ("raises", "it raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_spoilt_grader_is_invalid(parts: Assembly, fault: str, words: str) -> None:
    finding = judged(parts, Spoilt(fault))
    assert finding.level == "INVALID"
    assert words in finding.measured


class Spaced(ChainTask):
    """Its right answers need two spaces, which decoding with this tokenizer makes one."""

    def __init__(self, share: int) -> None:
        super().__init__(3, 9)
        self.share = share

    def gold(self, prompt: Prompt) -> str:
        return f"#{'  ' if int(prompt.answer) < self.share else ' '}{prompt.answer}"

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        return [(self.gold(prompt), True), ("", False)]

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        right = text == self.gold(prompt)
        return Grade(score=float(right), correct=right)


@pytest.mark.parametrize(("share", "level"), [(0, "PASS"), (5, "WARN"), (10, "INVALID")])
def test_answers_that_the_tokenizer_cannot_hold(parts: Assembly, share: int, level: str) -> None:
    assert judged(parts, Spaced(share)).level == level


class Silent(SingleTurnTask):
    """A task without known cases."""

    def __init__(self, inner: ChainTask) -> None:
        self.info, self._inner = inner.info, inner

    def item(self, split: Any, index: int) -> Prompt:
        return self._inner.item(split, index)

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        return self._inner.grade(prompt, text, finish_reason)


def test_a_task_without_cases_passes_and_says_so(parts: Assembly) -> None:
    finding = judged(parts, Silent(ChainTask()))
    assert (finding.level, finding.measured) == ("PASS", "not declared")


class Slow(ChainTask):
    """A grader that takes a twentieth of a second."""

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        time.sleep(0.05)
        return super().grade(prompt, text, finish_reason)


def test_stored_answers_of_a_slow_grader_are_a_part_of_them() -> None:
    found = golds(Slow(), 200, 0.5)
    assert 0 < found.items < 200
    assert found.refused == found.accepted == 0
    assert golds(ChainTask(), 200, 20.0).items == 200
