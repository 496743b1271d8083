"""PPO: token ratio, symmetric clip, a critic with generalised advantage estimation, KL in the reward.

    J = E[ (1/N) sum_it min(r_it A_it, clip(r_it, 1 - e, 1 + e) A_it) ],  A from GAE(gamma, lambda), whitened

Sources: Schulman et al. 2017 (1707.06347) for the objective; verl's defaults for lambda, value clip and the separate
critic; Open-Reasoner-Zero (2503.24290) supports gamma = lambda = 1 for verifiable rewards. "Plain PPO" in verl is
dual-clip PPO; the paper's objective, this preset, has no dual clip (arm `ppo_dualclip` sets c = 3).
"""

from __future__ import annotations

from algorithms.parts.admission import All as AdmitAll
from algorithms.parts.advantages import Gae
from algorithms.parts.aggregates import TokenMean
from algorithms.parts.penalties import Kl
from algorithms.parts.ratios import Token
from algorithms.parts.selection import All as KeepAll
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm
from harness.core.parts import Updates
from harness.core.registry import register_algorithm
from harness.core.search import Dimension


def build() -> Algorithm:
    """The published record."""
    return Algorithm(
        name="ppo",
        siblings=8,  # PPO needs none; 8 gives it the prompts and tokens of the group methods
        admission=AdmitAll(),
        selection=KeepAll(),
        rewards=(),
        advantage=Gae(
            gamma=1.0,  # InstructGPT, TRL, verl, OpenRLHF
            lam=1.0,  # verl, OpenRLHF; InstructGPT and TRL 0.95
            whiten=True,  # over all tokens of the rollout batch, verl and TRL
            value_clip=0.5,  # verl, OpenRLHF; TRL 0.2
            warmup_steps=5,  # ours: rollout steps that train the critic alone, charged to the budget
            rewards="outcome",  # of the whole response, at its last token
        ),
        ratio=Token(guard=20.0),  # verl's numerical guard
        surrogate=Clip(low=0.2, high=0.2, dual=None),  # the paper's epsilon
        aggregate=TokenMean(scope="batch"),  # verl
        penalties=(Kl(coef=0.001, estimator="k1", place="reward", clamp=True),),  # verl's fixed controller
        updates=Updates(mini_batches=4, epochs=1),  # shared by all presets
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=0.05, high=0.5, log=True),
    Dimension(path="surrogate.high", low=0.05, high=0.5, log=True),
    Dimension(path="advantage.lam", low=0.9, high=1.0),
)

register_algorithm("ppo", build, SPACE)
