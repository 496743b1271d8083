"""What `harness microscope` writes: a recorded rollout batch under several algorithms, as plain data; no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """Base: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(View):
    """Where the rollout batch comes from."""

    run: str  # name of the run folder
    arm: str  # that sampled it
    model: str
    task: str
    step: int  # of the rollout batch
    recorded_steps: tuple[int, ...]  # all that the run folder keeps


class Weights(View):
    """Which weights the losses are evaluated at, and how far they are from those that sampled."""

    kind: Literal["pass", "checkpoint"]  # after one update pass of `pass_arm`, or a checkpoint of the run
    text: str  # the same in words
    optimizer_steps: int | None  # between sampling weights and these; None where unknown
    lr: float | None  # of the pass
    sampling_gap: float | None  # mean |logp - behaviour logp| of the start weights, nats; 0 = they sampled the batch
    ratio_quantiles: tuple[float, ...]  # of exp(logp - old_logp) over tokens at 0, 5, 50, 95 and 100 %
    sd_log_s: float  # SD over rows of the mean log-ratio, nats


class BatchView(View):
    """The rollout batch as it was recorded."""

    groups: int
    rows: int
    tokens: int
    reward_mean: float
    groups_mixed: int  # with both correct and wrong responses
    length_quantiles: tuple[int, ...]  # response tokens at 0, 25, 50, 75 and 100 % of the rows


class ArmView(View):
    """One algorithm on the batch. Every number is at the same weights, the whole batch being one mini-batch."""

    name: str
    algorithm: str
    resolved: dict[str, Any]  # every slot, as in result.json
    identical_to: str | None  # the arm that it equals by mathematics
    notes: tuple[str, ...]
    rows_admitted: int  # in groups that the admission rule lets in
    rows_kept: int  # of these, kept by the selection
    rows_contributing: int  # of these, with an advantage other than 0
    clip_frac_tokens: float | None  # clipped share of contributing rows' tokens; None where nothing can be clipped
    clip_frac_rows: float | None  # share of contributing rows with a clipped token
    clipped_low: int  # tokens at the lower bound
    clipped_high: int  # tokens at the upper bound
    clipped_dual: int  # tokens at the dual clip's bound
    grad_norm: float  # of the policy's whole gradient, before clipping
    abs_weight: float  # sum over tokens of |d loss / d logp|
    effective_rows: float  # (sum_i W_i)^2 / sum_i W_i^2 with W_i = sum_t |w_it|: rows that carry the gradient
    effective_tokens: float  # the same over tokens
    ratio_ess: float | None  # (sum r)^2 / (n sum r^2) over contributing tokens, 1 = on-policy; None without any
    decile_share: tuple[float, ...]  # share of sum |w| in each bin of response length


class Deciles(View):
    """Bins of response length: equally many rows each, shortest first; rows of equal length share alike."""

    length: tuple[tuple[int, int], ...]  # shortest and longest response of the bin
    token_share: tuple[float, ...]  # share of all tokens, for comparison


class TokenView(View):
    """One response under one arm."""

    kept: Literal["yes", "not selected", "excluded", "group not admitted"]
    share: float  # of the arm's sum |w|
    advantage: tuple[float, ...]
    weight: tuple[float, ...]  # d loss / d logp; negative = the update makes the token more likely
    relative: tuple[float, ...]  # weight over the arm's mean |weight| per token of contributing rows
    ratio: tuple[float, ...]
    clip: tuple[int, ...]  # 0 no, 1 lower bound, 2 upper bound, 3 dual


class RowView(View):
    """One response of a shown group."""

    row: int
    reward: float
    correct: bool
    length: int  # tokens the policy produced
    tokens: tuple[str, ...]  # the first of them, at most `shown_tokens`
    ratio: tuple[float, ...]  # token ratio exp(logp - old_logp)
    arms: dict[str, TokenView]


class GroupShown(View):
    """A prompt with some of its responses."""

    group: int
    prompt: str
    size: int  # responses in the batch
    reward_mean: float
    rows: tuple[RowView, ...]


class Microscope(View):
    """The content of microscope.json."""

    schema_version: Literal[1] = 1
    harness_version: str
    roster: str
    source: Source
    weights: Weights
    batch: BatchView
    arms: tuple[ArmView, ...]
    cosine: tuple[tuple[float | None, ...], ...]  # of whole parameter gradients, in the order of arms; None: one is 0
    deciles: Deciles
    shown_tokens: int
    groups: tuple[GroupShown, ...]  # those on which the arms disagree most
    notes: tuple[str, ...]
