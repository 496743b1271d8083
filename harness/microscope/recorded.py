"""A rollout file of a run folder as a batch again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.core.errors import UsageError
from harness.core.results import ROLLOUTS
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import Grade, Prompt, RolloutBatch, StepCredit, Trajectory

HISTORY = "selection."
NEEDED = ("prompt_ids", "response_ids", "mask", "behaviour_logp", "reward", "correct", "group")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRollout:
    """One rollout batch as it was kept."""

    step: int
    batch: RolloutBatch
    values: Float[Tensor, "B T"] | None  # the critic's, where the run had one
    histories: Mapping[str, tuple[float, ...]]  # what the run's selection knew before it, by the name of its state


def recorded_steps(folder: Path) -> dict[int, Path]:
    """Step -> file of every rollout batch that a run folder keeps; UsageError where there is none."""
    files = sorted((folder / ROLLOUTS).glob("[0-9]*.safetensors"))
    if not files:
        raise UsageError(
            f"{folder}: no {ROLLOUTS}/<step>.safetensors",
            "without a recorded rollout batch there is nothing to look at",
            "a run folder that has some (every run keeps its first), or --fixture for the bundled one",
        )
    return {int(f.name.split(".")[0]): f for f in files}


def read_rollout(folder: Path, step: int, limit: int, device: str = "cpu") -> RecordedRollout:
    """The rollout batch of a step; `limit` is the hard limit of a response, tokens."""
    files = recorded_steps(folder)
    if step not in files:
        raise UsageError(
            f"{folder}: step {step}",
            "its rollout batch was not kept",
            f"--step with one of: {', '.join(map(str, files))}",
        )
    try:
        tensors = load_file(files[step], device=device)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{files[step]}", f"it cannot be read: {error}", "another --step") from None
    missing = [name for name in NEEDED if name not in tensors]
    if missing:
        raise UsageError(f"{files[step]}", f"it has no {', '.join(missing)}", "a file that the harness wrote")
    batch = as_batch(tensors, limit)
    if not bool(batch.mask.any()):
        raise UsageError(f"{files[step]}", "it holds no token that the policy produced", "another --step")
    values = tensors.get("values")
    histories = {k.removeprefix(HISTORY): tuple(v.tolist()) for k, v in tensors.items() if k.startswith(HISTORY)}
    return RecordedRollout(
        step=step, batch=batch, values=None if values is None else values.float(), histories=histories
    )


def as_batch(tensors: Mapping[str, Tensor], limit: int) -> RolloutBatch:
    """Tensors of a rollout file -> batch; groups are numbered from 0, the prompts' own ids are not kept."""
    mask = tensors["mask"].bool()
    group = torch.unique(tensors["group"].long(), return_inverse=True)[1]
    prompts = tuple(tuple(int(i) for i in line if i >= 0) for line in tensors["prompt_ids"].tolist())
    ended = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
    truncated = tensors.get("truncated", ended >= limit)
    return RolloutBatch(
        prompt_ids=prompts,
        response_ids=tensors["response_ids"].long(),
        mask=mask,
        behaviour_logp=tensors["behaviour_logp"].float(),
        entropy=None,
        group=group,
        reward=tensors["reward"].float(),
        correct=tensors["correct"].bool(),
        truncated=truncated,
        components={k.removeprefix("component."): v for k, v in tensors.items() if k.startswith("component.")},
        credit=_steps(tensors, "credit"),
        turns=_steps(tensors, "turns"),
        trajectories=_trajectories(tensors, prompts, group, mask, ended),
        policy_version=tensors["policy_version"].long() if "policy_version" in tensors else None,
    )


def _steps(tensors: Mapping[str, Tensor], name: str) -> StepCredit | None:
    if not len(tensors.get(f"{name}.row", ())):
        return None
    return StepCredit(row=tensors[f"{name}.row"], end=tensors[f"{name}.end"], reward=tensors[f"{name}.reward"].float())


def _trajectories(
    tensors: Mapping[str, Tensor],
    prompts: tuple[tuple[int, ...], ...],
    group: Int[Tensor, "B"],
    mask: Bool[Tensor, "B T"],
    ended: Int[Tensor, "B"],
) -> tuple[Trajectory, ...]:
    """The rows as the trainer's input needs them: ids and siblings; texts are not kept in the file."""
    found: list[Trajectory] = []
    seen: dict[int, int] = {}
    ids, reward, correct = tensors["response_ids"].tolist(), tensors["reward"].tolist(), tensors["correct"].tolist()
    logp = tensors["behaviour_logp"].tolist()
    for i, (g, n) in enumerate(zip(group.tolist(), ended.tolist(), strict=True)):
        found.append(
            Trajectory(
                prompt=Prompt(id=f"group {g}", messages=(), answer=None),
                sample=seen.setdefault(g, 0),
                prompt_ids=prompts[i],
                response_ids=tuple(ids[i][:n]),
                loss_mask=tuple(mask[i, :n].tolist()),
                logp=tuple(logp[i][:n]),
                entropy=None,
                segments=(),
                finish_reason="stop",
                text="",
                grade=Grade(score=float(reward[i]), correct=bool(correct[i])),
            )
        )
        seen[g] += 1
    return tuple(found)


def take_rows(batch: RolloutBatch, rows: Int[Tensor, "b"]) -> RolloutBatch:
    """Some rows as a batch of its own, of the same width; groups are numbered anew."""
    kept = rows.tolist()
    place = torch.full((batch.num_rows,), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)

    def taken(steps: StepCredit | None) -> StepCredit | None:
        if steps is None:
            return None
        at = place[steps.row]
        return StepCredit(row=at[at >= 0], end=steps.end[at >= 0], reward=steps.reward[at >= 0])

    return replace(
        batch,
        prompt_ids=tuple(batch.prompt_ids[i] for i in kept),
        response_ids=batch.response_ids[rows],
        mask=batch.mask[rows],
        behaviour_logp=batch.behaviour_logp[rows],
        entropy=None,
        group=torch.unique(batch.group[rows], return_inverse=True)[1],
        reward=batch.reward[rows],
        correct=batch.correct[rows],
        truncated=batch.truncated[rows],
        components={name: v[rows] for name, v in batch.components.items()},
        credit=taken(batch.credit),
        turns=taken(batch.turns),
        trajectories=tuple(batch.trajectories[i] for i in kept),
        policy_version=None if batch.policy_version is None else batch.policy_version[rows],
    )
