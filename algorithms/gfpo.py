"""GFPO: sample more, learn from the k responses of a group that score best on a metric such as brevity.

    A_i = (R_i - mean_S) / (std_S + eps) for i in S, 0 otherwise;  S = the k of G best by the metric
    J = E[ (1 / sum_i n_i) sum_it min(r_it A_i, clip(...) A_i) ] - beta KL + gamma_H H,  sums over all G responses

Source: GFPO (2508.09726) Eq. 2 and section 4: biased std, rejected rows stay in the denominator, beta and gamma_H
0.001, verl's dual clip. TRL's former trainer dropped rejected rows, which makes its gradient about G/k larger.
"""

from __future__ import annotations

from algorithms.parts.admission import All as AdmitAll
from algorithms.parts.advantages import Group
from algorithms.parts.aggregates import TokenMean
from algorithms.parts.penalties import Entropy, Kl
from algorithms.parts.ratios import Token
from algorithms.parts.selection import Shortest
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm
from harness.core.parts import Updates
from harness.core.registry import register_algorithm
from harness.core.search import Dimension


def build() -> Algorithm:
    """The published record."""
    return Algorithm(
        name="gfpo",
        siblings=16,  # the paper: 8, 16 or 24
        admission=AdmitAll(),
        selection=Shortest(k=8),  # the paper: k <= 8
        rewards=(),
        advantage=Group(std="biased", eps=1e-6, scope="group", singleton="zero"),  # Eq. 2, which has no eps
        ratio=Token(guard=20.0),
        surrogate=Clip(low=0.2, high=0.2, dual=3.0),  # the paper's footnote 1; 3 is the code base's default
        aggregate=TokenMean(scope="batch"),  # over all G responses
        penalties=(
            Kl(coef=0.001, estimator="k3", place="loss", clamp=True),
            Entropy(coef=0.001),
        ),
        updates=Updates(mini_batches=4, epochs=1),
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=0.05, high=0.5, log=True),
    Dimension(path="surrogate.high", low=0.05, high=0.5, log=True),
    Dimension(path="selection.k", low=2, high=12, integer=True),
)

register_algorithm("gfpo", build, SPACE)
