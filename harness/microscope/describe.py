"""What the arms saw -> the record of microscope.json, and the full tensors next to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness import __version__
from harness.core.microscope import (
    ArmView,
    BatchView,
    Deciles,
    GroupShown,
    Microscope,
    RowView,
    Source,
    TokenView,
    Weights,
)
from harness.core.shapes import Bool, Float, Tensor
from harness.core.spec import RunSpec
from harness.microscope.lens import Sight
from harness.microscope.recorded import RecordedRollout
from harness.microscope.statistics import (
    cosines,
    effective_number,
    inner_products,
    length_bins,
    quantiles,
    ratio_ess,
    share_by_bin,
)

if TYPE_CHECKING:
    from harness.models.load import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """How much of the batch is shown token by token."""

    groups: int = 3
    rows: int = 4  # per group
    tokens: int = 300  # per response


def describe(
    sights: Sequence[Sight],
    *,
    spec: RunSpec,
    run: str,
    roster: str,
    recorded_steps: tuple[int, ...],
    rollout: RecordedRollout,
    weights: Weights,
    token_ratio: Float[Tensor, "B T"],
    model: LoadedModel,
    showing: Showing,
    notes: Sequence[str],
    identical: Mapping[str, str | None],
) -> Microscope:
    """The whole record."""
    batch = rollout.batch
    length = batch.mask.sum(-1)
    bins = length_bins(length)
    products = inner_products([s.gradient for s in sights])
    norms = products.diag().clamp(min=0).sqrt().tolist()
    arms = [_arm(s, norm, bins, rollout, identical[s.arm.name]) for s, norm in zip(sights, norms, strict=True)]
    sizes = [[int(length[i]) for i in rows] for rows in bins]
    return Microscope(
        harness_version=__version__,
        roster=roster,
        source=Source(
            run=run, arm=spec.arm, model=spec.model.name, task=spec.task.name, step=rollout.step,
            recorded_steps=recorded_steps,
        ),
        weights=weights,
        batch=_batch(rollout),
        arms=tuple(arms),
        cosine=tuple(tuple(line) for line in cosines(products)),
        deciles=Deciles(
            length=tuple((min(s), max(s)) for s in sizes),
            token_share=tuple(share_by_bin(length.double(), length, bins)),
        ),
        shown_tokens=showing.tokens,
        groups=_groups(sights, rollout, token_ratio, model, showing),
        notes=tuple(notes),
    )  # fmt: skip


def full_tensors(sights: Sequence[Sight], token_ratio: Float[Tensor, "B T"]) -> dict[str, Tensor]:
    """Everything per token, for microscope.safetensors: `<arm>.weight`, `.clip`, `.ratio`, `.advantages`; `ratio`."""
    found = {"ratio": token_ratio}
    for s in sights:
        parts = {"weight": s.weight, "ratio": s.ratio, "advantages": s.advantages, "clip": s.clip.to(torch.uint8)}
        found |= {f"{s.arm.name}.{name}": value for name, value in parts.items()}
        found[f"{s.arm.name}.kept"] = s.kept
    return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}


def _batch(rollout: RecordedRollout) -> BatchView:
    batch = rollout.batch
    right = torch.zeros(batch.num_groups, device=batch.group.device).index_add_(0, batch.group, batch.correct.float())
    size = torch.bincount(batch.group, minlength=batch.num_groups)
    spread = quantiles(batch.mask.sum(-1), (0, 0.25, 0.5, 0.75, 1))
    return BatchView(
        groups=batch.num_groups,
        rows=batch.num_rows,
        tokens=int(batch.mask.sum()),
        reward_mean=float(batch.reward.mean()),
        groups_mixed=int(((right > 0) & (right < size)).sum()),
        length_quantiles=tuple(round(q) for q in spread),
    )


def _arm(
    sight: Sight,
    norm: float,
    bins: Sequence[Sequence[int]],
    rollout: RecordedRollout,
    identical: str | None,
) -> ArmView:
    algorithm = sight.arm.algorithm
    contributing = _contributing(sight)
    tokens = sight.mask & contributing[:, None]
    clipped = sight.clip > 0
    mass = sight.weight.abs().sum(-1)
    clips = algorithm.surrogate.clips and bool(contributing.any())
    return ArmView(
        name=sight.arm.name,
        algorithm=algorithm.name,
        resolved=algorithm.model_dump(mode="json"),
        identical_to=identical,
        notes=_notes(sight, rollout),
        rows_admitted=int(sight.admitted.sum()),
        rows_kept=int((sight.kept & sight.admitted).sum()),
        rows_contributing=int(contributing.sum()),
        clip_frac_tokens=float((clipped & tokens).sum() / tokens.sum()) if clips else None,
        clip_frac_rows=float(clipped.any(-1).sum() / contributing.sum()) if clips else None,
        clipped_low=int((sight.clip == 1).sum()),
        clipped_high=int((sight.clip == 2).sum()),
        clipped_dual=int((sight.clip == 3).sum()),
        grad_norm=float(norm),
        abs_weight=float(mass.double().sum()),
        effective_rows=effective_number(mass),
        effective_tokens=effective_number(sight.weight),
        ratio_ess=ratio_ess(sight.ratio, tokens),
        decile_share=tuple(share_by_bin(mass, rollout.batch.mask.sum(-1), bins)),
    )


def _notes(sight: Sight, rollout: RecordedRollout) -> tuple[str, ...]:
    """What a reader must know about this arm on this batch."""
    algorithm, batch, found = sight.arm.algorithm, rollout.batch, []
    out = batch.num_groups - len(torch.unique(batch.group[sight.admitted]))
    if out:
        found.append(
            f"{out} of {batch.num_groups} groups are not admitted; in training others would be sampled in their place"
        )
    if "critic" in algorithm.needs:
        found.append(
            "critic values as recorded"
            if rollout.values is not None
            else "the file holds no critic values, so V = 0: advantages are the returns, whitened where it says so"
        )
    if "k" in type(algorithm.selection).model_fields and bool((sight.kept | ~sight.admitted).all()):
        size = int(torch.bincount(batch.group).max())
        found.append(
            f"made for {algorithm.siblings} responses per prompt; of the {size} in this batch all are kept "
            "(a smaller selection.k shows the selection)"
        )
    if "credit" in algorithm.needs:
        found.append(
            "the batch has no process rewards, so the outcome alone counts"
            if batch.credit is None
            else "sees process rewards, which the other arms do not"
        )
    return tuple(found)


def _groups(
    sights: Sequence[Sight],
    rollout: RecordedRollout,
    token_ratio: Float[Tensor, "B T"],
    model: LoadedModel,
    showing: Showing,
) -> tuple[GroupShown, ...]:
    """The groups on which the arms disagree most, and in each the rows of most disagreement."""
    batch = rollout.batch
    apart = disagreement(sights)
    per_group = torch.zeros(batch.num_groups, dtype=torch.float64)
    per_group.index_add_(0, batch.group.cpu(), apart)
    chosen = torch.argsort(per_group, descending=True, stable=True)[: showing.groups].tolist()
    found = []
    for group in sorted(chosen):
        members = [int(i) for i in (batch.group == group).nonzero()[:, 0]]
        seen: dict[tuple[int, ...], int] = {}
        for i in members:  # the same response twice tells nothing new
            seen.setdefault(batch.trajectories[i].response_ids, i)
        length = batch.mask.sum(-1).tolist()
        rows = _choose(list(seen.values()), batch.reward.tolist(), length, apart.tolist(), showing.rows)
        found.append(
            GroupShown(
                group=group,
                prompt=_text(model, batch.prompt_ids[members[0]]),
                size=len(members),
                reward_mean=float(batch.reward[members].mean()),
                rows=tuple(_row(i, sights, rollout, token_ratio, model, showing.tokens) for i in rows),
            )
        )
    return tuple(found)


def disagreement(sights: Sequence[Sight]) -> Float[Tensor, "B"]:
    """Per row, the spread over arms of w / sum |w|, summed over its tokens: how differently the arms use it."""
    shares = torch.stack([s.weight.double() / s.weight.abs().double().sum().clamp(min=1e-300) for s in sights])
    return shares.std(0, correction=0).sum(-1).cpu()


def _choose(
    members: Sequence[int], reward: Sequence[float], length: Sequence[int], apart: Sequence[float], size: int
) -> list[int]:
    """Half of the rows from the better-rewarded, half from the others, by disagreement; best reward first."""
    mean = sum(reward[i] for i in members) / len(members)
    ranked = sorted(members, key=lambda i: (-apart[i], i))
    seen: dict[tuple[bool, int], int] = {}
    turn = {}  # how many of its length stand before it: different lengths come first
    for i in ranked:
        turn[i] = seen.get((reward[i] > mean, length[i]), 0)
        seen[reward[i] > mean, length[i]] = turn[i] + 1
    ranked.sort(key=turn.__getitem__)
    high, low = [i for i in ranked if reward[i] > mean], [i for i in ranked if reward[i] <= mean]
    half = max(size - size // 2, size - len(low))
    kept = high[:half]
    return sorted([*kept, *low[: size - len(kept)]], key=lambda i: (-reward[i], i))


def _text(model: LoadedModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=False))


def _row(
    row: int,
    sights: Sequence[Sight],
    rollout: RecordedRollout,
    token_ratio: Float[Tensor, "B T"],
    model: LoadedModel,
    limit: int,
) -> RowView:
    batch = rollout.batch
    at = batch.mask[row].nonzero()[:, 0]
    length = len(at)
    at = at[:limit]

    def values(x: Tensor) -> tuple[Any, ...]:
        return tuple(x[row][at].tolist())

    return RowView(
        row=row,
        reward=float(batch.reward[row]),
        correct=bool(batch.correct[row]),
        length=length,
        tokens=tuple(_text(model, [i]) for i in batch.response_ids[row][at].tolist()),
        ratio=values(token_ratio),
        arms={
            s.arm.name: TokenView(
                kept=_state(s, row),
                share=float(s.weight[row].abs().sum() / s.weight.abs().sum().clamp(min=1e-30)),
                advantage=values(s.advantages),
                weight=values(s.weight),
                relative=values(s.weight / _unit(s)),
                ratio=values(s.ratio),
                clip=values(s.clip),
            )
            for s in sights
        },
    )


def _contributing(sight: Sight) -> Bool[Tensor, "B"]:
    """Rows with an advantage that reaches the loss."""
    return ((sight.advantages != 0) & sight.mask).any(-1)


def _state(sight: Sight, row: int) -> Literal["yes", "not selected", "excluded", "group not admitted"]:
    if not sight.admitted[row]:
        return "group not admitted"
    if not sight.kept[row]:
        return "not selected"
    return "yes" if bool(sight.mask[row].any()) else "excluded"


def _unit(sight: Sight) -> float:
    """Mean |weight| over the tokens of contributing rows; 1 where there is none."""
    tokens = sight.mask & _contributing(sight)[:, None]
    mean = float(sight.weight.abs().sum() / tokens.sum().clamp(min=1))
    return mean if mean > 0 else 1.0
