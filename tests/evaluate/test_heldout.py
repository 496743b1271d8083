"""Held-out evaluation inside a run: greedy or sampled, avg@k and pass@k over the same questions, splits apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness.assemble import assemble
from harness.core.results import read_run
from harness.core.spec import EvalSpec
from harness.report.collect import evaluations, mean_pass
from harness.run import execute
from tests.fakes.small_runs import make_folder, run_spec


def test_greedy_scores_are_those_of_the_likeliest_tokens(tmp_path: Path) -> None:
    spec = run_spec(steps=1, eval={"points": 1, "prompts": 8, "final_prompts": 16, "greedy": True})
    folder = make_folder(spec, tmp_path)
    execute(spec, folder)
    first = next(e for e in read_run(folder).evals if e.split == "test" and e.step == 0)
    parts = assemble(spec)
    right = []
    for index in range(16):
        prompt = parts.task.item("test", index)
        ids = torch.tensor([parts.codec.encode(prompt.messages)])
        with torch.no_grad():
            out = parts.model.policy.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=spec.recipe.max_new_tokens,
                eos_token_id=list(parts.model.eos_ids), pad_token_id=parts.model.pad_id,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        ended = bool(set(out) & set(parts.model.eos_ids))
        text = parts.codec.decode(out)
        right.append(parts.task.step(parts.task.start(prompt), text, "stop" if ended else "length")[1].grade.correct)
    assert [q.correct for q in first.questions] == [int(r) for r in right]
    assert first.score == sum(right) / 16


def test_greedy_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="all the same"):
        EvalSpec(greedy=True, samples=4)
    with pytest.raises(ValidationError, match="all the same"):
        EvalSpec(greedy=True, final_samples=2)


def test_avg_and_pass_at_k_and_disjoint_splits(tmp_path: Path) -> None:
    spec = run_spec(steps=1, eval={"points": 1, "prompts": 8, "samples": 4, "final_prompts": 16, "final_samples": 4})
    folder = make_folder(spec, tmp_path)
    execute(spec, folder)
    run = read_run(folder)
    for record, row in zip(run.evals, evaluations([run]), strict=True):
        assert record.score == pytest.approx(sum(q.correct / q.n for q in record.questions) / len(record.questions))
        assert row["pass_at_k"] == sum(q.correct > 0 for q in record.questions) / len(record.questions)
        assert row["se"] is not None
    of = {split: {q.id for e in run.evals if e.split == split for q in e.questions} for split in ("validation", "test")}
    assert of["validation"]
    assert not of["validation"] & of["test"]
    assert run.result is not None
    assert run.result.base_score == run.evals[0].score
    assert run.result.best_validation == max(e.score for e in run.evals if e.split == "validation")


def test_pass_at_k_needs_k_samples() -> None:
    from harness.core.columns import Questions

    found = mean_pass(Questions.of([("a", 8, 2), ("b", 2, 2)]), 4)
    assert found == pytest.approx(1 - 15 / 70)
    assert mean_pass(Questions.of([("b", 2, 2)]), 4) is None
