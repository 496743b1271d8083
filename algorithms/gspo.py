"""GSPO: importance ratio and clipping per sequence instead of per token.

    J = E[ (1/G) sum_i min(s_i A_i, clip(s_i, 1 - e_low, 1 + e_high) A_i) ],  s_i = exp((1/n_i) sum_t log r_it)

Every token of a row has the same weight, and clipping removes whole rows. Source: GSPO (2507.18071), section 4 and
5.1 (ranges 3e-4 / 4e-4, four mini-batches). KL is omitted there; its author recommends none. The published range
presumes responses of thousands of tokens: SD(log s) shrinks with length, so judge a range by eps / SD(log s)
(arm `gspo_calibrated`).
"""

from __future__ import annotations

from algorithms.parts.admission import All as AdmitAll
from algorithms.parts.advantages import Group
from algorithms.parts.aggregates import SeqMeanTokenMean
from algorithms.parts.ratios import Sequence
from algorithms.parts.selection import All as KeepAll
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm
from harness.core.parts import Updates
from harness.core.registry import register_algorithm
from harness.core.search import Dimension


def build() -> Algorithm:
    """The published record."""
    return Algorithm(
        name="gspo",
        siblings=8,  # shared; verl's scripts 16
        admission=AdmitAll(),
        selection=KeepAll(),
        rewards=(),
        advantage=Group(std="unbiased", eps=1e-6, scope="group", singleton="zero"),
        ratio=Sequence(guard=10.0),  # verl's numerical guard on log s
        surrogate=Clip(low=3e-4, high=4e-4, dual=None),  # the paper's section 5.1
        aggregate=SeqMeanTokenMean(count_empty=False, eps=0.0),
        penalties=(),
        updates=Updates(mini_batches=4, epochs=1),  # the paper's four
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=3e-5, high=3e-2, log=True),
    Dimension(path="surrogate.high", low=3e-5, high=3e-2, log=True),
)

register_algorithm("gspo", build, SPACE)
