"""What is measured: every subject has a name, belongs to a section and runs in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from harness.core.errors import UsageError
from harness.core.spec import Dtype, Spec, UpdateSpec

MODEL, TASK = "smollm2-135m", "reasoning_gym:chain_sum"
TASK_PARAMS: dict[str, Any] = {"min_terms": 2, "max_terms": 2}
PROMPTS, SIBLINGS = 8, 8
EXACT = UpdateSpec(share_prompts=True)  # every exact saving on
SWITCHES = tuple(name for name in UpdateSpec.model_fields if name != "compile")
ALGORITHMS = ("ppo", "grpo", "dapo", "gspo", "gspo_token", "gfpo_shortest")
TINY = ("ppo", "grpo", "dapo", "gspo", "gfpo_shortest", "grpo_process")
REPLAY = ("off", "r2", "r3")  # modes of Routing Replay
PLAIN_ALLOCATOR = "switch-keep_memory-off"
SHORT = {"float32": "fp32", "bfloat16": "bf16"}

Section = Literal["step", "update", "switches", "algorithms", "scaling", "tiny", "replay", "loss", ""]


class Subject(Spec):
    """One thing to measure, in plain data for the process that does it."""

    name: str
    section: Section
    who: Literal["ours", "trl", "loss"]
    work: Literal["step", "update"]  # whole steps, or the update alone on the recorded batch
    model: str = MODEL
    task: str = TASK
    dtype: Dtype = "float32"
    sampler: Literal["transformers", "vllm"] = "transformers"
    arm: str | None = None  # None: TRL's formula of GRPO, beta 0
    rewards: Literal["recorded", "every_row"] = "recorded"
    prompts: int = PROMPTS
    siblings: int = SIBLINGS
    optimizer_steps: int = 1  # per rollout batch; 1 is TRL's default
    update: UpdateSpec = EXACT
    gradient_checkpointing: bool = False  # of TRL, whose default is True
    trl_weights: Dtype = "float32"  # of TRL, whose bfloat16 keeps float32 weights unless told otherwise
    keep_memory: bool = False  # the allocator as in our runs; the C library's default otherwise
    threads: int = 1
    warm_up: int = 1
    steps: int = 2


def _step_subjects() -> list[Subject]:
    found = []
    for dtype in ("float32", "bfloat16"):
        at: dict[str, Any] = {"section": "step", "work": "step", "dtype": dtype}
        short = SHORT[dtype]
        found += [
            Subject(name=f"ours-vllm-{short}", who="ours", sampler="vllm", **at),
            Subject(name=f"trl-transformers-{short}", who="trl", **at),
            Subject(name=f"ours-transformers-{short}", who="ours", **at),
            Subject(name=f"trl-vllm-{short}", who="trl", sampler="vllm", **at),
            Subject(name=f"trl-checkpointing-{short}", who="trl", gradient_checkpointing=True, **at),
        ]
    lean: dict[str, Any] = {"dtype": "bfloat16", "trl_weights": "bfloat16"}  # moments in bfloat16 too
    four: dict[str, Any] = {"section": "step", "work": "step", "optimizer_steps": 4}
    return [
        *found,
        Subject(name="trl-bf16-weights", section="step", who="trl", work="step", **lean),
        Subject(name="ours-vllm-fp32-x4", who="ours", sampler="vllm", **four),
        Subject(name="trl-transformers-fp32-x4", who="trl", **four),
    ]


def _update_subjects() -> list[Subject]:
    found = []
    for dtype in ("float32", "bfloat16"):
        at: dict[str, Any] = {"section": "update", "work": "update", "dtype": dtype}
        short = SHORT[dtype]
        found += [
            Subject(name=f"update-ours-{short}-every-row", who="ours", rewards="every_row", **at),
            Subject(name=f"update-trl-{short}", who="trl", rewards="every_row", **at),  # it skips nothing
            Subject(name=f"update-ours-{short}-recorded", who="ours", **at),
        ]
    return found


def _switch_subjects() -> list[Subject]:
    at: dict[str, Any] = {"section": "switches", "who": "ours", "work": "update", "dtype": "bfloat16"}
    found = [Subject(name="switch-default", **at)]
    for name in SWITCHES:
        flipped = EXACT.model_copy(update={name: not getattr(EXACT, name)})
        found.append(Subject(name=f"switch-{name}-{'on' if getattr(flipped, name) else 'off'}", update=flipped, **at))
    return [*found, Subject(name=PLAIN_ALLOCATOR, **at)]


def _algorithm_subjects(sampler: Literal["transformers", "vllm"]) -> list[Subject]:
    at: dict[str, Any] = {"section": "algorithms", "who": "ours", "work": "step", "dtype": "bfloat16"}
    return [Subject(name=f"algorithm-{arm}", arm=arm, sampler=sampler, optimizer_steps=4, **at) for arm in ALGORITHMS]


def _scaling_subjects(sampler: Literal["transformers", "vllm"]) -> list[Subject]:
    sizes = {"base": (8, 8), "2x-prompts": (16, 8), "2x-siblings": (8, 16)}
    at: dict[str, Any] = {"section": "scaling", "who": "ours", "dtype": "bfloat16", "rewards": "every_row"}
    found = []
    for name, (prompts, siblings) in sizes.items():
        size: dict[str, Any] = {"prompts": prompts, "siblings": siblings}
        found += [
            Subject(name=f"scale-update-{name}", work="update", **size, **at),
            Subject(name=f"scale-step-{name}", work="step", sampler=sampler, **size, **at),
        ]
    return found


def _tiny_subjects() -> list[Subject]:
    at: dict[str, Any] = {"section": "tiny", "who": "ours", "work": "step", "model": "tiny", "task": "chain"}
    return [
        Subject(name=f"tiny-{arm}", arm=arm, prompts=32, optimizer_steps=4, warm_up=3, steps=20, **at) for arm in TINY
    ]


def _replay_subjects() -> list[Subject]:
    at: dict[str, Any] = {"section": "replay", "who": "ours", "work": "step", "model": "tiny-moe", "task": "chain"}
    return [
        Subject(
            name=f"replay-{mode}", arm=f"grpo_replay_{mode}", prompts=32, optimizer_steps=4, warm_up=3, steps=20, **at
        )
        for mode in REPLAY
    ]


def catalogue(sampler: Literal["transformers", "vllm"]) -> list[Subject]:
    """All subjects in the order in which they run; `sampler` is the fastest that is installed."""
    found = [
        *_step_subjects(),
        *_update_subjects(),
        *_switch_subjects(),
        *_algorithm_subjects(sampler),
        *_scaling_subjects(sampler),
        *_tiny_subjects(),
        *_replay_subjects(),
        Subject(name="loss", section="loss", who="loss", work="update"),
    ]
    mine = {"keep_memory": True}
    return [s.model_copy(update=mine) if s.who == "ours" and s.name != PLAIN_ALLOCATOR else s for s in found]


def chosen(subjects: Sequence[Subject], only: Sequence[str]) -> list[Subject]:
    """Those whose name or section fits one of the patterns; all without a pattern."""
    for pattern in only:
        if not any(_fits(s, pattern) for s in subjects):
            sections = dict.fromkeys(s.section for s in subjects)
            raise UsageError(
                f"--only {pattern}",
                "no subject or section of that name",
                f"a section ({', '.join(sections)}), a name of `harness bench --list`, or a pattern such as 'update-*'",
            )
    return [s for s in subjects if not only or any(_fits(s, pattern) for pattern in only)]


def _fits(subject: Subject, pattern: str) -> bool:
    return subject.section == pattern or fnmatchcase(subject.name, pattern)
