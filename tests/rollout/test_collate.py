"""Groups -> tensors, and where in the tokens a span of text ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from harness.core.types import Grade, Prompt, RolloutGroup, Trajectory
from harness.rollout.codec import last_token, token_ends
from harness.rollout.collate import collate


def row(
    prompt: Prompt,
    sample: int,
    length: int,
    *,
    score: float = 1.0,
    credit: tuple[tuple[int, float], ...] = (),
    entropy: bool = True,
    components: dict[str, float] | None = None,
    observed: Sequence[int] = (),
) -> Trajectory:
    return Trajectory(
        prompt=prompt,
        sample=sample,
        prompt_ids=(1, 2, 3),
        response_ids=tuple(range(10, 10 + length)),
        loss_mask=tuple(i not in observed for i in range(length)),
        logp=tuple(-0.1 * (i + 1) for i in range(length)),
        entropy=tuple(0.5 for _ in range(length)) if entropy else None,
        segments=((length, 0),),
        finish_reason="length" if length == 5 else "stop",
        text="",
        grade=Grade(score=score, correct=score > 0.5, components=components or {}),
        credit=credit,
    )


def groups(**changes: object) -> list[RolloutGroup]:
    a, b = (Prompt(id=name, messages=(), answer=None) for name in "ab")
    return [
        RolloutGroup(prompt=a, trajectories=(row(a, 0, 2, credit=((1, 0.5),)), row(a, 1, 5, score=0.0))),
        RolloutGroup(
            prompt=b, trajectories=(row(b, 0, 0, **changes), row(b, 1, 3, credit=((0, 1.0), (2, 0.0)), **changes))
        ),  # type: ignore[arg-type]
    ]


def test_rows_are_padded_on_the_right_and_masked() -> None:
    batch = collate(groups())
    assert batch.mask.tolist() == [[i < n for i in range(5)] for n in (2, 5, 0, 3)]
    assert batch.response_ids[3].tolist() == [10, 11, 12, 0, 0]
    assert batch.behaviour_logp[0].tolist() == pytest.approx([-0.1, -0.2, 0, 0, 0])
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.reward.tolist() == [1, 0, 1, 1]
    assert batch.correct.tolist() == [True, False, True, True]
    assert batch.truncated.tolist() == [False, True, False, False]
    assert batch.num_rows == 4
    assert batch.num_groups == 2
    assert batch.entropy is not None


def test_credit_keeps_row_position_and_reward() -> None:
    credit = collate(groups()).credit
    assert credit is not None
    assert list(zip(credit.row.tolist(), credit.end.tolist(), credit.reward.tolist(), strict=True)) == [
        (0, 1, 0.5), (3, 0, 1.0), (3, 2, 0.0),
    ]  # fmt: skip


def test_what_some_rows_lack() -> None:
    batch = collate(groups(entropy=False, components={"form": 0.25}))
    assert batch.entropy is None
    assert torch.isnan(batch.components["form"][:2]).all()
    assert batch.components["form"][2:].tolist() == [0.25, 0.25]
    without = [RolloutGroup(prompt=g.prompt, trajectories=g.trajectories[1:]) for g in groups()[:1]]
    assert collate(without).credit is None


def test_observation_tokens_stay_out_of_the_mask() -> None:
    prompt = Prompt(id="a", messages=(), answer=None)
    batch = collate([RolloutGroup(prompt=prompt, trajectories=(row(prompt, 0, 4, observed=(1, 2)),))])
    assert batch.mask.tolist() == [[True, False, False, True]]
    assert batch.response_ids.shape == (1, 4)


def test_ends_of_words_joined_by_spaces() -> None:
    words = ["+3", "1", "+5", "6", "#", "4", ""]

    def decode(ids: Sequence[int]) -> str:
        return " ".join(words[i] for i in ids if words[i])

    ids = [0, 1, 2, 3, 4, 5, 6]
    text = decode(ids)
    ends = token_ends(ids, text, lambda i: words[i], decode)
    assert ends == [2, 4, 7, 9, 11, 13, 13]
    assert [text[:e] for e in ends[:3]] == ["+3", "+3 1", "+3 1 +5"]
    assert last_token(ends, (0, 4)) == 1
    assert last_token(ends, (5, 9)) == 3
    assert last_token(ends, (12, 13)) == 5, "the end token has no text and earns nothing"


def test_ends_of_pieces_that_simply_join() -> None:
    pieces = ["Step", " one", ":", " 12", "3", "\n", "Done"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids)

    ids = list(range(7))
    ends = token_ends(ids, decode(ids), lambda i: pieces[i], decode)
    assert ends == [4, 8, 9, 12, 13, 14, 18]
    assert last_token(ends, (10, 13)) == 4
    assert last_token(ends, (0, 10)) == 3, "a span that ends inside a token belongs to that token"


def test_ends_of_pieces_that_are_parts_of_a_character() -> None:
    raw = "né!".encode()
    assert len(raw) == 4

    def decode(ids: Sequence[int]) -> str:
        return bytes(raw[i] for i in ids).decode(errors="ignore")

    ids = [0, 1, 2, 3]
    ends = token_ends(ids, "né!", lambda i: decode([i]), decode)
    assert ends == [1, 1, 2, 3]
    assert last_token(ends, (1, 2)) == 2


def test_a_span_outside_the_response_has_no_token() -> None:
    assert last_token([2, 4], (0, 9)) is None
    assert last_token([2, 4], (3, 3)) is None
    assert last_token([], (0, 1)) is None
