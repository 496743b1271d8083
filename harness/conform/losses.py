"""Adapters of the policy-loss suites: settings -> record, arrays -> parts, outputs by the peers' names.

No mathematics here (tests/architecture).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from algorithms.parts import quirks
from algorithms.parts.advantages import paid
from algorithms.parts.kl import kl_estimate
from algorithms.parts.penalties import Kl
from algorithms.parts.selection import best_of_group
from harness.conform import records
from harness.conform.cases import Case
from harness.core.algorithm import Algorithm
from harness.core.masked import masked, masked_mean
from harness.core.parts import AdvantageInput, Advantages, ExclusionView, PenaltyInput, RowView
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import BatchTotals, LossOutput
from harness.train.objective import batch_totals, loss_mask, policy_loss, token_rewards, value_loss

Outputs = Mapping[str, Tensor]
Adapter = Callable[[Case], Outputs]


def groups(case: Case) -> tuple[Int[Tensor, "B"], int]:
    """Group ids as 0..N-1, and N."""
    names, index = case.given["group_ids"].unique(return_inverse=True)
    return index, len(names)


def advantage_input(case: Case, mask: Bool[Tensor, "B T"], **given: Any) -> AdvantageInput:
    """The rows of a case with everything kept; reward functions are called 0, 1, ..."""
    index, number = groups(case)
    functions = case.given.get("rewards_per_func")
    names = {} if functions is None else {str(i): x for i, x in enumerate(functions.unbind(1))}
    default: dict[str, Any] = {
        "reward": case.given.get("rewards"),
        "kept": torch.ones(len(mask), dtype=torch.bool),
        "components": names,
    }
    return AdvantageInput(mask=mask, group=index, num_groups=number, **{**default, **given})


def row_view(case: Case) -> RowView:
    """What a selection looks at."""
    index, number = groups(case)
    reward = case.given["rewards"]
    return RowView(
        reward=reward,
        correct=torch.zeros(len(reward), dtype=torch.bool),
        length=case.mask.sum(1),
        group=index,
        num_groups=number,
        limit=case.mask.shape[1],
        reward_range=(0.0, 1.0),
        uniform=torch.zeros_like(reward),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One loss and its gradient."""

    out: LossOutput
    grad: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def share(self, flag: Bool[Tensor, "B T"]) -> Tensor:
        """Share of the tokens."""
        return masked_mean(flag.double(), self.mask)

    @property
    def clipped(self) -> Bool[Tensor, "B T"]:
        return torch.logical_or(self.out.clipped_low, self.out.clipped_high)


def run(
    case: Case,
    algorithm: Algorithm,
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    totals: BatchTotals | None = None,
) -> Run:
    """`policy_loss` of the whole case as one micro-batch."""
    logp = case.given["logp"].clone().requires_grad_()
    out = policy_loss(
        algorithm,
        logp=logp,
        old_logp=case.given["old_logp"],
        ref_logp=case.given.get("ref_logp"),
        entropy=None,
        advantages=advantages,
        mask=mask,
        totals=totals or batch_totals(mask),
        weights=case.given.get("rollout_is_weights"),
    )
    (grad,) = torch.autograd.grad(out.loss, logp)
    return Run(out=out, grad=grad, mask=mask)


def drift(case: Case, bound: float | None) -> Float[Tensor, ""]:
    """`ppo_kl` of verl and OpenRLHF: mean of old_logp - logp, limited to +-bound per token."""
    old, new = case.given["old_logp"], case.given["logp"]
    return masked_mean(kl_estimate("k1", masked(old, case.mask), masked(new, case.mask), old, bound=bound), case.mask)


def verl_outputs(case: Case, done: Run, guard: float | None) -> dict[str, Tensor]:
    """What verl's losses report."""
    found = {
        "loss": done.out.loss,
        "pg_loss": done.out.policy_loss,
        "grad_logp": done.grad,
        "clipfrac": done.share(done.clipped),
        "clipfrac_lower": done.share(done.out.clipped_dual),
        "ppo_kl": drift(case, guard),
    }
    kl = done.out.penalties.get("kl")
    return found if kl is None else {**found, "kl_loss": kl}


def verl_group(case: Case) -> Outputs:
    """GRPO, DAPO, GSPO, GSPO-token and CISPO of verl."""
    algorithm = records.verl_group(case.hyper)
    given = case.given.get("token_advantages")
    advantages = algorithm.advantage(advantage_input(case, case.mask)).advantages if given is None else given
    done = run(case, algorithm, advantages, case.mask)
    bound = records.VERL_DRIFT[case.hyper["loss"]]
    return {"advantages": masked(advantages, case.mask), **verl_outputs(case, done, bound)}


def critic(
    case: Case,
    algorithm: Algorithm,
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    aggregate: Any,
    total: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The value loss, its clip fraction, and the gradient of the loss or of a `total` that it is part of."""
    vpred = case.given["vpred"].clone().requires_grad_()
    plan = algorithm.advantage.critic
    done = value_loss(
        vpred=vpred,
        values=case.given["values"],
        returns=returns,
        mask=mask,
        totals=batch_totals(mask),
        clip=None if plan is None else plan.value_clip,
        aggregate=records.record(aggregate=aggregate).aggregate,
    )
    return {
        "vf_loss": done.loss,
        "grad_vpred": torch.autograd.grad(done.loss if total is None else total(done.loss), vpred)[0],
        "vf_clipfrac": masked_mean(done.clipped.double(), mask),
    }


def with_returns(found: Advantages) -> tuple[Tensor, Tensor]:
    """Advantages and returns of an estimator that has a critic."""
    assert found.returns is not None
    return found.advantages, found.returns


def reward_kl(case: Case, algorithm: Algorithm) -> Float[Tensor, ""]:
    """verl's `current_kl`: mean over responses of the KL in the reward."""
    (part,) = algorithm.penalties
    assert isinstance(part, Kl)
    old = case.given["old_logp"]
    view = PenaltyInput(logp=old, old_logp=old, ref_logp=case.given["ref_logp"], entropy=None, mask=case.mask)
    return part.mean(part(view), case.mask)


def verl_ppo(case: Case) -> Outputs:
    """PPO of verl, critic included."""
    algorithm = records.verl_ppo(case.hyper)
    given = case.given
    taken = token_rewards(algorithm, given["old_logp"], given["ref_logp"], case.mask)
    view = advantage_input(case, case.mask, token_reward=taken, values=given["values"])
    advantages, returns = with_returns(algorithm.advantage(view))
    done = run(case, algorithm, advantages, case.mask)
    return {
        "token_level_rewards": paid(view),
        "advantages": advantages,
        "returns": returns,
        "reward_kl": reward_kl(case, algorithm),
        **verl_outputs(case, done, getattr(algorithm.ratio, "guard", None)),
        **critic(case, algorithm, returns, case.mask, records.verl_aggregate(case.hyper["vf_agg"])),
    }


def row_advantages(algorithm: Algorithm, view: AdvantageInput) -> Float[Tensor, "B"]:
    """Advantages per row, empty rows included: as if every response had one token."""
    one = torch.ones(len(view.mask), 1, dtype=torch.bool)
    short = AdvantageInput(
        reward=view.reward,
        mask=one,
        group=view.group,
        num_groups=view.num_groups,
        kept=view.kept,
        components=view.components,
    )
    return algorithm.advantage(short).advantages[:, 0]


def trl_group(case: Case) -> Outputs:
    """GRPO, BNPO, DAPO, Dr. GRPO, LUSPO, GSPO, GSPO-token, CISPO and GDPO of TRL."""
    h, mask = case.hyper, case.mask
    algorithm = records.trl_group(h)
    view = advantage_input(case, mask)
    given = case.given.get("token_advantages")
    advantages = algorithm.advantage(view).advantages if given is None else given
    totals = quirks.trl_totals(batch_totals(mask), h["num_items"], h["grad_accum"], h["steps_per_generation"])
    done = run(case, algorithm, advantages, mask, totals)
    found = {
        "advantages": row_advantages(algorithm, view) if given is None else masked(given, mask),
        "loss": done.out.loss,
        "grad_logp": done.grad,
        "cispo_clip_ratio": done.share(torch.logical_and(done.out.clipped_high, advantages > 0)),
    }
    found |= trl_clip_ratios(done, h["is_level"] == "sequence")
    kl = trl_kl(case, algorithm)
    return found if kl is None else {**found, "kl": kl}


def trl_clip_ratios(done: Run, by_row: bool) -> dict[str, Tensor]:
    """Shares of tokens, or of rows where the ratio is one per row."""
    flags = {"low": done.out.clipped_low, "high": done.out.clipped_high, "region": done.clipped}
    return {
        f"clip_ratio_{name}_mean": flag.any(1).double().mean() if by_row else done.share(flag)
        for name, flag in flags.items()
    }


def trl_kl(case: Case, algorithm: Algorithm) -> Tensor | None:
    """Mean over tokens of the KL penalty, where there is one."""
    given = case.given
    if "ref_logp" not in given:
        return None
    view = PenaltyInput(
        logp=given["logp"], old_logp=given["old_logp"], ref_logp=given["ref_logp"], entropy=None, mask=case.mask
    )
    (penalty,) = algorithm.penalties
    return masked_mean(penalty(view), case.mask)


def gfpo(case: Case, algorithm: Algorithm) -> tuple[AdvantageInput, Bool[Tensor, "B T"]]:
    """Rows selected by the case's own score, which has no ties; the mask of the loss."""
    view = row_view(case)
    k = torch.full((view.num_groups,), algorithm.selection.model_dump()["k"])
    kept = best_of_group(view, case.given["filter_score"], k)
    out = ExclusionView(kept=kept, truncated=torch.zeros_like(kept))
    mask, _ = loss_mask(algorithm, case.mask, out)
    return advantage_input(case, mask, kept=kept), mask


def gfpo_trl(case: Case) -> Outputs:
    """GFPO of TRL: rejected rows leave every denominator."""
    algorithm = records.trl_group(case.hyper)
    view, mask = gfpo(case, algorithm)
    done = run(case, algorithm, algorithm.advantage(view).advantages, mask)
    return {
        "kept_index": view.kept.nonzero()[:, 0],
        "advantages": row_advantages(algorithm, view),
        "loss": done.out.loss,
        "grad_logp": done.grad,
        **trl_clip_ratios(done, by_row=False),
    }


def gfpo_paper(case: Case) -> Outputs:
    """GFPO Eq. 2 on verl's loss: rejected rows stay with an advantage of 0."""
    algorithm = records.gfpo_paper(case.hyper)
    view, mask = gfpo(case, algorithm)
    done = run(case, algorithm, algorithm.advantage(view).advantages, mask)
    return {
        "kept_index": view.kept.nonzero()[:, 0],
        "advantages": row_advantages(algorithm, view),
        **verl_outputs(case, done, getattr(algorithm.ratio, "guard", None)),
    }


def openrlhf(case: Case) -> Outputs:
    """PPO, GRPO and GSPO of OpenRLHF."""
    algorithm, given = records.openrlhf(case.hyper), case.given
    extra: dict[str, Any] = {}
    if "values" in given:
        nothing = torch.zeros_like(given["rewards"])
        extra = {"reward": nothing, "token_reward": given["token_level_rewards"], "values": given["values"]}
    view = advantage_input(case, case.mask, **extra)
    found = algorithm.advantage(view)
    done = run(case, algorithm, found.advantages, case.mask)
    outputs = {
        "advantages": found.advantages,
        "loss": done.out.loss,
        "grad_logp": done.grad,
        "clipfrac": done.share(done.clipped),
        "ppo_kl": drift(case, None),
    }
    if found.returns is None:
        return outputs
    raw = algorithm.advantage.model_copy(update={"whiten": False})(view).advantages
    return {
        **outputs,
        "returns": found.returns,
        "advantages_raw": raw,
        **critic(case, algorithm, found.returns, case.mask, "token-mean"),
    }


def trl_ppo(case: Case) -> Outputs:
    """TRL's former PPO: values and score live one position past the last token."""
    h, given = case.hyper, case.given
    algorithm = records.trl_ppo(h)
    estimator = algorithm.advantage
    assert isinstance(estimator, quirks.GaeTrl)
    positions = torch.arange(given["logp"].shape[1])
    mask = positions < given["lengths"][:, None]
    rows = torch.arange(len(mask))
    view = AdvantageInput(
        reward=given["rewards"],
        mask=mask,
        group=rows,
        num_groups=len(mask),
        kept=torch.ones(len(mask), dtype=torch.bool),
        token_reward=token_rewards(algorithm, given["old_logp"], given["ref_logp"], mask),
        values=given["values"],
    )
    advantages, returns = with_returns(estimator(view))
    done = run(case, algorithm, advantages, mask)

    def joint(value: Tensor) -> Tensor:
        return quirks.joint_loss(done.out.loss.detach(), value, h["vf_coef"])

    value = critic(case, algorithm, returns, quirks.past_end(mask), "token-mean", joint)
    return {
        **value,
        "token_level_rewards": estimator.rewards(view),
        "advantages": advantages,
        "returns": returns,
        "pg_loss": done.out.policy_loss,
        "loss": joint(value["vf_loss"]),
        "grad_logp": done.grad,
        "clipfrac": done.share(done.clipped),
    }
