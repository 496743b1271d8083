"""GRPO: the critic is replaced by the mean reward of a prompt's siblings; KL to the reference stands in the loss.

    J = E[ (1/G) sum_i (1/n_i) sum_t { min(r_it A_i, clip(r_it, 1 - e, 1 + e) A_i) - beta k3_it } ]
    A_i = (R_i - mean_g) / (std_g + eps)

Source: DeepSeekMath (2402.03300) section 4.1, beta 0.04. The paper gives no epsilon (0.2 is every implementation's)
and no flavour of std (unbiased with 1e-6 is verl's). Library defaults called "grpo" differ: TRL 1.16 averages over
tokens with beta 0; verl averages over tokens with a dual clip of 3.
"""

from __future__ import annotations

from algorithms.parts.admission import All as AdmitAll
from algorithms.parts.advantages import Group
from algorithms.parts.aggregates import SeqMeanTokenMean
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
        name="grpo",
        siblings=8,  # TRL's default; the paper 64, DeepSeek-R1 16
        admission=AdmitAll(),
        selection=KeepAll(),
        rewards=(),
        advantage=Group(std="unbiased", eps=1e-6, scope="group", singleton="zero"),  # verl, but A = 0 for a lone row
        ratio=Token(guard=20.0),
        surrogate=Clip(low=0.2, high=0.2, dual=None),
        aggregate=SeqMeanTokenMean(count_empty=False, eps=0.0),  # the paper's 1/G sum 1/n_i
        penalties=(Kl(coef=0.04, estimator="k3", place="loss", clamp=True),),  # the paper's beta
        updates=Updates(mini_batches=4, epochs=1),  # the paper 1, at which nothing is ever clipped
        prompts_factor=1,
    )


SPACE = (
    Dimension(path="surrogate.low", low=0.05, high=0.5, log=True),
    Dimension(path="surrogate.high", low=0.05, high=0.5, log=True),
)

register_algorithm("grpo", build, SPACE)
