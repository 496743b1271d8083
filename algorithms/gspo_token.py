"""GSPO-token: the value of GSPO's sequence ratio with a gradient per token, so that tokens may differ in advantage.

    s_it = sg[s_i] pi(y_t) / sg[pi(y_t)]
    J = E[ (1/G) sum_i (1/n_i) sum_t min(s_it A_it, clip(s_it, 1 - e_low, 1 + e_high) A_it) ]

Source: GSPO (2507.18071) section 4.3. With the group advantage, constant within a row, it is GSPO (value, clipping
and gradient); it becomes an algorithm of its own with a per-token advantage, e.g. `advantage=process` or `gae`.
"""

from __future__ import annotations

from algorithms.parts.admission import All as AdmitAll
from algorithms.parts.advantages import Group
from algorithms.parts.aggregates import SeqMeanTokenMean
from algorithms.parts.ratios import SequenceValue
from algorithms.parts.selection import All as KeepAll
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm
from harness.core.parts import Updates
from harness.core.registry import register_algorithm
from harness.core.search import Dimension


def build() -> Algorithm:
    """The published record."""
    return Algorithm(
        name="gspo_token",
        siblings=8,  # shared
        admission=AdmitAll(),
        selection=KeepAll(),
        rewards=(),
        advantage=Group(std="unbiased", eps=1e-6, scope="group", singleton="zero"),  # the paper names no other source
        ratio=SequenceValue(guard=10.0),
        surrogate=Clip(low=3e-4, high=4e-4, dual=None),  # GSPO's section 5.1
        aggregate=SeqMeanTokenMean(count_empty=False, eps=0.0),
        penalties=(),
        updates=Updates(mini_batches=4, epochs=1),
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=3e-5, high=3e-2, log=True),
    Dimension(path="surrogate.high", low=3e-5, high=3e-2, log=True),
)

register_algorithm("gspo_token", build, SPACE)
