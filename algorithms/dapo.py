"""DAPO: GRPO without KL, plus clip-higher, dynamic sampling, the token-level loss and soft overlong punishment.

    J = E[ (1 / sum_i n_i) sum_it min(r_it A_i, clip(r_it, 1 - e_low, 1 + e_high) A_i) ]  with  0 < #correct < G

Source: DAPO (2503.14476) and its verl recipe (10 generation batches at most, filter on accuracy). Each of the four
parts is one override away from off: surrogate.high=0.2, admission=all, aggregate=seq-mean-token-mean,
rewards.overlong=null.
"""

from __future__ import annotations

from algorithms.parts.admission import Mixed
from algorithms.parts.advantages import Group
from algorithms.parts.aggregates import TokenMean
from algorithms.parts.ratios import Token
from algorithms.parts.rewards import Overlong
from algorithms.parts.selection import All as KeepAll
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm
from harness.core.parts import Updates
from harness.core.registry import register_algorithm
from harness.core.search import Dimension


def build() -> Algorithm:
    """The published record."""
    return Algorithm(
        name="dapo",
        siblings=8,  # shared; the paper 16
        admission=Mixed(
            metric="correct",  # the paper's constraint; the recipe's `acc`
            max_rounds=10,  # the recipe's max_num_gen_batches
            on_exhausted="train",  # ours: train on what was admitted; the recipe raises
            keep_singletons=True,  # the recipe
            carry_over=False,  # the recipe drops surplus groups
        ),
        selection=KeepAll(),
        rewards=(
            Overlong(
                cache=None,  # a fifth of the limit, the paper's 4096 of 20480
                limit=None,  # the run's generation limit
                fraction=0.5,  # the paper's -1 is half of its reward range [-1, 1]
                beyond="flat",
            ),
        ),
        advantage=Group(std="unbiased", eps=1e-6, scope="group", singleton="zero"),
        ratio=Token(guard=20.0),
        surrogate=Clip(low=0.2, high=0.28, dual=None),  # clip-higher; the recipe's scripts add a dual clip of 10
        aggregate=TokenMean(scope="batch"),  # over the optimizer step; "group" is Eq. 8 read literally
        penalties=(),  # the paper removes KL
        updates=Updates(mini_batches=4, epochs=1),  # shared; the paper 16
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=0.05, high=0.5, log=True),
    Dimension(path="surrogate.high", low=0.05, high=0.5, log=True),
    Dimension(path="rewards.overlong.fraction", low=0.0, high=1.0),
)

register_algorithm("dapo", build, SPACE)
