"""What is mirrored of an evaluation."""

from __future__ import annotations

from harness.backends.trackers.entries import eval_points
from harness.core.results import EvalRecord, QuestionScore


def test_parts_of_the_reward_are_curves_of_their_own() -> None:
    record = EvalRecord(
        step=4, sampled_tokens_cum=10, split="test", task="chain", samples=1, score=0.5, reward_mean=0.7,
        length_mean=3.0, truncated=0.0, components={"learned": 0.7, "true": 0.5},
        questions=(QuestionScore(id="a", n=2, correct=1),),
    )  # fmt: skip
    found = {p.key: (p.value, p.step) for p in eval_points([record], 0)}
    assert found["eval/chain/test/component/learned"] == (0.7, 4)
    assert found["eval/chain/test/component/true"] == (0.5, 4)
    assert found["eval/chain/test/avg_at_1"] == (0.5, 4)
