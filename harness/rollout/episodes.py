"""Episodes of several turns: the policy's turns and the environment's replies in one row of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import SampleRequest, Task, Turn
from harness.core.routing import extended
from harness.core.shapes import Tensor
from harness.core.types import Completion, Done, FinishReason, Grade, Observation, Prompt, Trajectory
from harness.rollout.codec import Codec, last_token, token_ends

FULL = "context is full"


@dataclass(slots=True, kw_only=True)
class Episode:
    """One response under way; grows by a turn and a reply at a time."""

    prompt: Prompt
    sample: int
    prompt_ids: tuple[int, ...]
    key: tuple[int, ...]  # of the first turn
    state: Any
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    entropy: list[float] | None = field(default_factory=list)
    segments: list[tuple[int, int]] = field(default_factory=list)
    ends: list[tuple[int, float]] = field(default_factory=list)  # last token of a turn that was replied to, its reward
    starts: list[int] = field(default_factory=list)  # first token of each turn
    texts: list[str] = field(default_factory=list)  # of the turns
    shown: list[str] = field(default_factory=list)  # turns and replies
    routes: Tensor | None = None  # of the tokens read so far
    finish_reason: FinishReason = "stop"
    grade: Grade | None = None

    def request(self) -> SampleRequest:
        """The next turn, under a random stream of its own."""
        turn = self.key[-1] + len(self.texts)
        return SampleRequest(prompt_ids=(*self.prompt_ids, *self.ids), keys=((*self.key[:-1], turn),))

    def say(self, done: Completion, text: str) -> None:
        """Appends a turn of the policy."""
        self.starts.append(len(self.ids))
        self.ids += done.token_ids
        self.mask += [True] * len(done.token_ids)
        self.logp += done.logp
        if self.entropy is not None:
            self.entropy = None if done.entropy is None else [*self.entropy, *done.entropy]
        self.segments += done.segments
        self.texts.append(text)
        self.shown.append(text)
        self.finish_reason = done.finish_reason
        self.routes = extended(self.routes, done.routes)

    def see(self, reply: Observation, tokens: Sequence[int]) -> None:
        """Appends the environment's reply, which is masked out."""
        self.ends.append((len(self.ids) - 1, reply.reward))
        self.ids += tokens
        self.mask += [False] * len(tokens)
        self.logp += [0.0] * len(tokens)
        if self.entropy is not None:
            self.entropy += [0.0] * len(tokens)
        self.shown += [f"[{m['role']}] {m['content']}" for m in reply.messages]

    def take_back_reply(self) -> None:
        """Without the reply behind the last turn: nothing follows it."""
        end = self.ends.pop()[0] + 1
        del self.ids[end:], self.mask[end:], self.logp[end:]
        if self.entropy is not None:
            del self.entropy[end:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What episodes are played on."""

    task: Task
    codec: Codec
    context: int  # tokens the model can attend to
    max_new_tokens: int  # of a turn
    generate: Callable[[Sequence[SampleRequest]], list[list[Completion]]]


def begin(task: Task, prompt: Prompt, request: SampleRequest) -> Iterator[Episode]:
    """One episode per key of the request."""
    for sample, key in enumerate(request.keys):
        yield Episode(
            prompt=prompt, sample=sample, prompt_ids=request.prompt_ids, key=key, state=task.start(prompt)
        )  # fmt: skip


def play(episodes: Sequence[Episode], first: Sequence[Completion], stage: Stage) -> None:
    """Plays all episodes to their end, turn by turn, given their first turns."""
    going, said = list(episodes), list(first)
    while going:
        for episode, done in zip(going, said, strict=True):
            episode.say(done, stage.codec.decode(done.token_ids))
        turns = [Turn(state=e.state, text=e.texts[-1], finish_reason=e.finish_reason) for e in going]
        for episode, (state, reply) in zip(going, stage.task.step_many(turns), strict=True):
            episode.state = state
            _answer(episode, reply, stage)
        going = [e for e in going if e.grade is None]
        said = [c[0] for c in stage.generate([e.request() for e in going])] if going else []


def _answer(episode: Episode, reply: Observation | Done, stage: Stage) -> None:
    """The task's answer to the last turn: the grade, or a reply that is appended where another turn fits behind it."""
    info = stage.task.info
    if isinstance(reply, Done):
        episode.grade = reply.grade
        return
    if len(episode.texts) >= info.max_turns:
        raise UsageError(
            f"task {info.name}: a reply to turn {len(episode.texts)}",
            f"it declares max_turns={info.max_turns}, after which an episode is over",
            "a task whose TaskInfo.max_turns holds",
        )
    last = episode.ids[-1]
    episode.see(reply, stage.codec.encode_reply(episode.prompt.messages, reply.messages, last))
    if len(episode.prompt_ids) + len(episode.ids) + stage.max_new_tokens > stage.context:
        episode.take_back_reply()
        episode.finish_reason = "length"
        episode.grade = Grade(score=info.reward_range[0], correct=False, why=FULL)


def trajectory(episode: Episode, codec: Codec, piece: Callable[[int], str]) -> Trajectory:
    """The finished episode as a row; the last turn earns what the score has beyond the turns before."""
    grade = episode.grade
    assert grade is not None, "play() ends every episode"
    rest = grade.score - sum(reward for _, reward in episode.ends)
    return Trajectory(
        prompt=episode.prompt,
        sample=episode.sample,
        prompt_ids=episode.prompt_ids,
        response_ids=tuple(episode.ids),
        loss_mask=tuple(episode.mask),
        logp=tuple(episode.logp),
        entropy=None if episode.entropy is None else tuple(episode.entropy),
        segments=tuple(episode.segments),
        finish_reason=episode.finish_reason,
        text="\n".join(episode.shown),
        grade=grade,
        credit=_credit(episode, grade, codec, piece),
        turns=(*episode.ends, (len(episode.ids) - 1, rest)),
        routes=episode.routes,
    )


def _credit(episode: Episode, grade: Grade, codec: Codec, piece: Callable[[int], str]) -> tuple[tuple[int, float], ...]:
    """Process rewards inside turns, at positions of the row."""
    found = []
    stops = [end + 1 for end, _ in episode.ends] + [len(episode.ids)]
    for credit in grade.credit:
        start = episode.starts[credit.turn]
        ids = episode.ids[start : stops[credit.turn]]
        at = last_token(token_ends(ids, episode.texts[credit.turn], piece, codec.decode), credit.span)
        if at is not None:
            found.append((start + at, credit.reward))
    return tuple(found)
