"""Routing Replay in the plan of a study: what cannot work is refused, and an arm's name says its mode."""

from __future__ import annotations

from harness.core.algorithm import Replay, replay_mode
from harness.core.errors import UsageError
from harness.core.resolve import resolve_algorithm
from harness.core.spec import ArmSpec, BackendSpec, StudySpec
from harness.study.arms import arm_backend

LABEL: dict[Replay, str] = {"off": "free routes", "r2": "R2", "r3": "R3"}


def mode_of(arm: ArmSpec, spec: StudySpec) -> Replay:
    """The mode in force."""
    algorithm = resolve_algorithm(arm.algorithm, arm.overrides, spec.recipe)
    return replay_mode(algorithm, moe=spec.backend.routers > 0)


def with_replay(spec: StudySpec, *, named: bool) -> StudySpec:
    """The study with its arms checked; on a mixture of experts and where they may be `named`, with names that tell."""
    modes = {arm.name: mode_of(arm, spec) for arm in spec.arms}
    for arm in spec.arms:
        _check(modes[arm.name], spec.model.name, arm_backend(spec.backend, arm))
    if not named or not spec.backend.routers:
        return spec
    names = {name: _named(name, mode) for name, mode in modes.items()}
    twins = [name for name in names if list(names.values()).count(names[name]) > 1]
    if twins:
        raise UsageError(
            f"arms {', '.join(twins)}",
            f"on a mixture of experts they are the same arm: {names[twins[0]]}",
            "one of them, or another routing_replay (off, r2, r3)",
        )
    arms = tuple(arm.model_copy(update={"name": names[arm.name]}) for arm in spec.arms)
    return spec.model_copy(update={"arms": arms, "reference_arm": names[spec.reference_arm]})


def _named(name: str, mode: Replay) -> str:
    """`GRPO replay r2` and `GRPO` -> `GRPO, R2`."""
    bare = name
    for ending in LABEL:
        bare = bare.removesuffix(f" replay {ending}")
    return bare if bare.endswith(f", {LABEL[mode]}") else f"{bare}, {LABEL[mode]}"


def _check(mode: Replay, model: str, backend: BackendSpec) -> None:
    if mode != "off" and not backend.routers:
        raise UsageError(
            f"routing_replay={mode} with the model {model}",
            "none of its modules routes tokens to experts and returns (logits, gates, experts): it is dense, or its "
            "routers are of another kind",
            "routing_replay=off, or a mixture of experts with such routers (tiny-moe, Qwen3-MoE, OLMoE, Mixtral, ...)",
        )
    if mode == "r3" and not _tells(backend):
        where = "an engine server" if backend.engine.server else f"vLLM on {backend.device}"
        raise UsageError(
            f"routing_replay=r3 with {where}",
            "it does not return which experts a token went to",
            "--sampler transformers, vLLM in this process on a GPU, or routing_replay=r2 or off",
        )
    if mode != "off" and backend.update.compile:
        raise UsageError(
            f"routing_replay={mode} with backend.update.compile=true",
            "a compiled layer keeps the routes of the batch it was compiled with",
            "backend.update.compile=false, or routing_replay=off",
        )


def _tells(backend: BackendSpec) -> bool:
    """Whether the sampler returns routes."""
    if backend.sampler == "transformers":
        return True
    return backend.engine.server is None and backend.device.startswith("cuda")
