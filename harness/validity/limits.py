"""The thresholds of the checks, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16", "mixed", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GapLimits:
    """Bounds on e = trainer's log-prob - sampler's log-prob of the same token under the same weights, in nats."""

    mean_warn: float  # of mean |e|
    max_warn: float | None  # of max |e|; None: grows with the number of tokens, so no bound
    mean_invalid: float
    max_invalid: float | None
    k3_invalid: float  # of mean(e^e - 1 - e), an estimate of KL(sampler || trainer)
    reason: str


# Measured: float32 against float32 differs by at most 3e-5, with a KV cache, shared prompts or another engine. bfloat16
# against bfloat16 differs by .04 on average and .4 at most, whatever the engine (SmolLM2-135M, 1,400 tokens). A prompt
# without its first token gives .065 on average there, temperature .9 instead of 1 gives .1 and .7 gives .24. float16
# against float16 .002 and .03, against float32 .004 and .03; weights rounded to int8 against float32 .045 and .3.
GAPS: Mapping[Precision, GapLimits] = {
    "float32": GapLimits(
        mean_warn=1e-3, max_warn=1e-3, mean_invalid=0.01, max_invalid=0.2, k3_invalid=0.05,
        reason="rounding in float32 stays below 1e-4 nats, reduced-precision matrix products below 0.01 on average",
    ),
    "bfloat16": GapLimits(
        mean_warn=0.06, max_warn=None, mean_invalid=0.15, max_invalid=None, k3_invalid=0.05,
        reason="rounding in bfloat16 gives about 0.04 nats on average and 0.4 at most",
    ),
    "float16": GapLimits(
        mean_warn=0.01, max_warn=None, mean_invalid=0.06, max_invalid=None, k3_invalid=0.05,
        reason="rounding in float16 gives about 0.002 nats on average and 0.03 at most",
    ),
    "int8": GapLimits(
        mean_warn=1e-3, max_warn=1e-3, mean_invalid=0.2, max_invalid=None, k3_invalid=0.05,
        reason="the weights that sample are rounded to int8, which gives about 0.05 nats on average",
    ),
    "mixed": GapLimits(
        mean_warn=1e-3, max_warn=1e-3, mean_invalid=0.15, max_invalid=None, k3_invalid=0.05,
        reason="sampler and trainer compute in different precisions, which gives up to about 0.06 nats on average",
    ),
}  # fmt: skip

# E[-log p] of sampled tokens is their exact entropy, so the difference is noise around 0, here in standard errors. At 4
# one healthy run in some ten thousand is told; at 6 none should be.
SURPRISE_WARN, SURPRISE_INVALID = 4.0, 6.0

# A share of cut responses above which METHOD's detectors speak of a length explosion: rewards then measure the limit.
TRUNCATED_WARN = 0.3
TRUNCATED_ALL = 0.99  # of responses: none can be right where answers come last

# Of stored answers. Real data sets hold a few that even their authors' graders refuse; one in a hundred is noise.
GOLD_MISJUDGED = 0.01

DEAD_WARN = 0.9  # of groups without spread: nine tenths of the sampled tokens teach nothing
CLONES_EXPECTED = 0.01  # share of groups of equal siblings that chance explains
UNGRADED_WARN, UNGRADED_INVALID = (
    0.01,
    0.5,
)  # of responses without a verdict: beyond a half there is no reward to speak of
UNREADABLE_WARN = 0.9  # of responses from which no answer could be read

OVERSPENT_WARN = 1.1  # sampled tokens of the costliest arm in units of the cheapest's
