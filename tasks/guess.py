"""`guess`: find a hidden number within a few turns; every wrong guess may be answered with higher or lower.

Prompt `0 2 3 5 7 8 ?`, turns `# 3` | `# 7` | `# 5`, answers `+1` (it is higher), `-1` (it is lower), `!` (wrong).
With `style="text"` the same in English, for models that read it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any, Literal

from harness.core.errors import UsageError
from harness.core.ports import Split, Task, TaskInfo
from harness.core.registry import register_task
from harness.core.types import Done, FinishReason, Grade, Message, Observation, Prompt
from tasks.params import check_bool, check_choice, check_int, check_known, check_turn_reward
from tasks.splits import content_id, digest, split_of

Style = Literal["words", "text"]
_MOST_SETS = 100_000  # sets of candidates that are enumerated
_NUMBER = re.compile(r"\d+")
_SAID = {
    "words": {"higher": "+1", "lower": "-1", "wrong": "!", "unreadable": "!"},
    "text": {
        "higher": "Wrong. My number is higher. Guess again.",
        "lower": "Wrong. My number is lower. Guess again.",
        "wrong": "Wrong. Guess again.",
        "unreadable": "That is none of the numbers. Guess again.",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GameState:
    """An episode: what is hidden, which candidates are left, and what was earned so far."""

    hidden: int
    left: tuple[int, ...]  # candidates that no reply has excluded
    turn: int = 0  # turns taken
    earned: float = 0.0


class GuessTask(Task):
    """All sets of `min_candidates` to `max_candidates` of the first `numbers` numbers, with every hidden member.

    The splits are divided by set, so a held-out prompt was never trained on. Score 1 for finding the number within
    `turns` turns, else what the turns earned: `turn_reward` for each wrong guess that no earlier reply excludes. The
    turn that finds it earns the rest of 1. `feedback=False` replies only that a guess is wrong.
    """

    def __init__(
        self,
        numbers: int = 10,
        min_candidates: int = 5,
        max_candidates: int = 7,
        turns: int = 3,
        turn_reward: float = 0.1,
        feedback: bool = True,
        style: Style = "words",
    ) -> None:
        check_choice("guess", "style", style, ("words", "text"))
        check_int("guess", "numbers", numbers, 4, 10 if style == "words" else 100)
        check_int("guess", "max_candidates", max_candidates, 2, numbers)
        check_int("guess", "min_candidates", min_candidates, 2, max_candidates)
        check_int("guess", "turns", turns, 1, 32)
        check_turn_reward("guess", turn_reward, turns)
        check_bool("guess", "feedback", feedback)
        sizes = range(min_candidates, max_candidates + 1)
        count = sum(comb(numbers, k) for k in sizes)
        if not 20 <= count <= _MOST_SETS:
            raise UsageError(
                f"task guess: numbers={numbers}, min_candidates={min_candidates}, max_candidates={max_candidates}",
                f"there are {count} sets of candidates, and three splits need 20 to {_MOST_SETS}",
                "other numbers, e.g. numbers=10, min_candidates=5, max_candidates=7",
            )
        self._turns, self._reward, self._feedback, self._style = turns, turn_reward, feedback, style
        self._items: dict[Split, list[tuple[tuple[int, ...], int]]] = {"train": [], "validation": [], "test": []}
        sets = [s for k in sizes for s in combinations(range(numbers), k)]
        for chosen in sorted(sets, key=lambda s: digest(self._shown(s))):
            self._items[split_of(self._shown(chosen))] += [(chosen, hidden) for hidden in chosen]
        for items in self._items.values():  # so that the first items are not all of one set
            items.sort(key=lambda item: digest(f"{self._shown(item[0])} {item[1]}"))
        self.info = TaskInfo(
            name="guess",
            reward_range=(0.0, 1.0),
            threshold=1.0,
            graded=turn_reward > 0,
            components=("found", "play"),
            max_turns=turns,
            sizes={split: len(items) for split, items in self._items.items()},
            description=f"find one of {min_candidates} to {max_candidates} numbers within {turns} turns, "
            f"{'with' if feedback else 'without'} higher or lower",
        )

    def item(self, split: Split, index: int) -> Prompt:
        items = self._items[split]
        if not 0 <= index < len(items):
            raise UsageError(f"task guess: item {index} of {split}", f"it has {len(items)}", "fewer prompts")
        chosen, hidden = items[index]
        message: Message = {"role": "user", "content": self._shown(chosen)}
        return Prompt(
            id=content_id(f"{self._shown(chosen)} {hidden}"),
            messages=(message,),
            answer=(chosen, hidden),
            difficulty=f"{len(chosen)} candidates",
        )

    def gold(self, prompt: Prompt) -> str:
        return self.written(prompt.answer[1])

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The hidden number is right; another one is wrong, which only the last turn's grade says."""
        other = next(n for n in prompt.answer[0] if n != prompt.answer[1])
        return [(self.gold(prompt), True), (self.written(other), False)]

    def written(self, number: int) -> str:
        """A guess as a response."""
        return f"# {number}" if self._style == "words" else str(number)

    def start(self, prompt: Prompt) -> GameState:
        chosen, hidden = prompt.answer
        return GameState(hidden=hidden, left=tuple(chosen))

    def step(self, state: GameState, text: str, finish_reason: FinishReason) -> tuple[GameState, Observation | Done]:
        guess = self._read(text) if finish_reason == "stop" else None
        earned = self._reward if guess in state.left else 0.0
        state = replace(state, turn=state.turn + 1)
        if guess == state.hidden:
            return state, _done(state, guess, found=True, why="right")
        state = replace(state, earned=state.earned + earned)
        if state.turn == self._turns:
            why = "cut off" if finish_reason != "stop" else "no answer" if guess is None else "wrong"
            return state, _done(state, guess, found=False, why=why)
        said = "unreadable" if guess is None else "wrong"
        left = tuple(n for n in state.left if n != guess)
        if self._feedback and guess is not None:
            said = "higher" if state.hidden > guess else "lower"
            left = tuple(n for n in left if (n > guess) == (state.hidden > guess))
        message: Message = {"role": "user", "content": _SAID[self._style][said]}
        return replace(state, left=left), Observation(messages=(message,), reward=earned)

    def _read(self, text: str) -> int | None:
        """The number after the last mark (words), or the last one (text)."""
        if self._style == "words":
            _, mark, tail = text.rpartition("#")
            word = tail.strip()
            return int(word) if mark and word.isdecimal() else None
        found = _NUMBER.findall(text)
        return int(found[-1]) if found else None

    def _shown(self, chosen: Sequence[int]) -> str:
        if self._style == "words":
            return f"{' '.join(map(str, chosen))} ?"
        return (
            f"I have chosen one of these numbers: {', '.join(map(str, chosen))}. Find it within {self._turns} guesses. "
            "Reply with one number at a time."
        )


def _done(state: GameState, guess: int | None, *, found: bool, why: str) -> Done:
    """The play's part is what the turns before earned; finding it is worth the rest of 1."""
    parts = {"found": 1.0 - state.earned if found else 0.0, "play": state.earned}
    score = 1.0 if found else state.earned
    extracted = None if guess is None else str(guess)
    return Done(grade=Grade(score=score, correct=found, components=parts, extracted=extracted, why=why))


def build(argument: str = "", **params: Any) -> GuessTask:
    """`guess` with numbers, min_candidates, max_candidates, turns, turn_reward, feedback and style."""
    if argument:
        raise UsageError(f"task guess:{argument}", "it takes no argument after a colon", "parameters, e.g. turns=3")
    known = ("numbers", "min_candidates", "max_candidates", "turns", "turn_reward", "feedback", "style")
    check_known("guess", params, known)
    return GuessTask(**params)


register_task("guess", build)
