"""Real runs broken on purpose: what is put in, when, and what must be noticed. Each is an ordinary study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.spec import Budget, EvalSpec, ModelSpec, MonitorSpec, Recipe, ScheduleEntry, StudySpec, TaskSpec
from harness.study.arms import build_arm

STEPS = 90
AT = 0.5  # of the budget: the run has risen by .2 by then
SEEDS = (0, 2)  # two cold starts that rise by .2 within 45 steps of this size
PROMPTS = 16
HEALTHY_ARMS = ("ppo", "grpo", "dapo", "gspo", "gspo_calibrated", "gfpo_shortest", "gspo_token_process", "grpo_process")
HELD_OUT = EvalSpec(points=18, prompts=256, final_prompts=2000)
MISREPORTED = {"logp_noise.of": "behaviour"}  # the sampler reports other log-probs than it drew from
OFF = 1e9  # a clip range that no ratio leaves; infinity has no JSON

COLLAPSES = ("reward_collapse", "below_base")
SYMPTOMS = (  # what else a policy that falls apart shows
    "ratio_explosion", "grad_explosion", "entropy_explosion", "entropy_collapse", "kl_blowup", "length_explosion",
    "length_collapse", "degenerate_text", "dead_signal",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Induced:
    """One fault and what it may be called."""

    name: str
    overrides: Mapping[str, Any]  # from AT on; empty: nothing is wrong
    right: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    from_the_start: Mapping[str, Any] = field(default_factory=dict)  # what the fault needs to be possible at all


FAULTS: tuple[Induced, ...] = (
    Induced(name="lr-x10", overrides={"recipe.lr": 3e-3}, right=COLLAPSES, neighbours=SYMPTOMS),
    Induced(name="lr-x100", overrides={"recipe.lr": 3e-2}, right=COLLAPSES, neighbours=SYMPTOMS),
    Induced(
        name="clip-off-4-epochs",
        overrides={"surrogate.low": OFF, "surrogate.high": OFF, "updates.epochs": 4},
        right=("ratio_explosion", *COLLAPSES),
        neighbours=SYMPTOMS,
    ),
    Induced(
        name="negative-kl",
        overrides={"penalties.fault_kl": {"coef": -0.3}},
        from_the_start={"penalties.kl": {"coef": 1e-9}},  # so that there is a reference policy
        right=("kl_blowup",),
        neighbours=(*COLLAPSES, "entropy_explosion", "ratio_explosion"),
    ),
    Induced(
        name="length-reward",
        overrides={"rewards.fault_length": {}},
        right=("length_explosion", "degenerate_text"),
        neighbours=COLLAPSES,
    ),
    Induced(name="constant-reward", overrides={"rewards.fault_constant": {}}, right=("dead_signal",)),
    Induced(name="injected-inf", overrides={"penalties.fault_inf": {}}, right=("numeric",)),
    Induced(name="noise-0.2", overrides={**MISREPORTED, "logp_noise.sd": 0.2}, right=("mismatch_blowup",)),
    Induced(name="noise-0.5", overrides={**MISREPORTED, "logp_noise.sd": 0.5}, right=("mismatch_blowup",)),
    Induced(
        name="negative-entropy",
        overrides={"penalties.fault_entropy": {"coef": -5.0}, "updates.epochs": 4},
        right=("entropy_collapse",),
        neighbours=("dead_signal", *COLLAPSES),
    ),
    Induced(
        name="large-entropy",
        overrides={"penalties.entropy": {"coef": 0.5}},
        right=("entropy_explosion",),
        neighbours=(*COLLAPSES, "length_explosion"),
    ),
)
NONE = Induced(name="healthy", overrides={})


def studies(recipe: Mapping[str, Any]) -> dict[str, tuple[StudySpec, Induced]]:
    """Study name -> its spec and its fault; `recipe` is that of the embedded model."""
    found = {f"induced-{fault.name}": (_study(fault, recipe, ("grpo",)), fault) for fault in FAULTS}
    return found | {f"induced-{NONE.name}": (_study(NONE, recipe, HEALTHY_ARMS), NONE)}


def _study(fault: Induced, recipe: Mapping[str, Any], arms: tuple[str, ...]) -> StudySpec:
    built = [build_arm(arm, "matched", several_rosters=False) for arm in arms]
    start = dict(fault.from_the_start)
    built = [a.model_copy(update={"overrides": {**a.overrides, **start}}) for a in built]
    return StudySpec(
        name=f"induced-{fault.name}",
        task=TaskSpec(name="chain"),
        model=ModelSpec(name="tiny"),
        recipe=Recipe.model_validate({**recipe, "prompts_per_step": PROMPTS}),
        budget=Budget(steps=STEPS),
        eval=HELD_OUT,
        arms=tuple(built),
        seeds=SEEDS,
        reference_arm=built[0].name,
        monitor=MonitorSpec(on_collapse="record"),
        schedule=(ScheduleEntry(at=AT, overrides=dict(fault.overrides)),) if fault.overrides else (),
    )
