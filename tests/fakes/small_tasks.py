"""Tasks and codecs for tests of the rollout: words for tokens, answers by script."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.ports import SingleTurnTask, Split, TaskInfo
from harness.core.types import FinishReason, Grade, Message, Prompt


class NumbersTask(SingleTurnTask):
    """Item i of a split is the prompt `i`; a response is correct if its first word is `yes`."""

    def __init__(self, train: int | None) -> None:
        self.info = TaskInfo(
            name="numbers",
            reward_range=(0.0, 1.0),
            threshold=0.5,
            components=("right",),
            sizes={"train": train, "validation": 5, "test": None},
        )

    def item(self, split: Split, index: int) -> Prompt:
        size = self.info.sizes[split]
        assert size is None or index < size
        message: Message = {"role": "user", "content": str(index)}
        return Prompt(id=f"{split}-{index}", messages=(message,), answer=index)

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        right = text.startswith("yes")
        return Grade(score=float(right), correct=right, components={"right": float(right)})


class NumbersCodec:
    """A prompt is its number as one token; responses are the words `yes` (1) and `no` (0)."""

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return (int(messages[-1]["content"]),)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("yes" if i else "no" for i in ids)

    def render(self, messages: Sequence[Message]) -> str:
        return messages[-1]["content"]
