"""What the sampler asks of an engine, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from harness.core.shapes import Tensor

REQUIRED = "0.32"  # minor version whose internals were read and tested; see pyproject.toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt to continue `num_samples` times."""

    prompt_ids: tuple[int, ...]
    num_samples: int
    limit: int  # tokens of each continuation


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRule:
    """How every continuation of a call is drawn and where it ends."""

    temperature: float
    end_ids: tuple[int, ...]
    stop: tuple[str, ...]  # early exit; the sampler decides by its own decoding where a response really ends
    seed: int  # of the engine's random numbers, for this call


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A continuation as the engine returned it."""

    token_ids: tuple[int, ...]  # the ending token included
    logp: tuple[float, ...]  # of each token, after the temperature
    entropy: tuple[float, ...] | None  # nats, of the distribution that each token was drawn from
    labels: frozenset[str]  # of the weights that sampled it
    routes: Tensor | None = None  # experts [tokens read, layers, k] of prompt and continuation, where it was asked for


class Engine(ABC):
    """Draws tokens under the weights that were loaded last.

    Whatever fails in it is raised as InfrastructureError. After a load that failed, the engine reports no label that a
    load was ever given, so nothing sampled from such weights can pass for a response of the policy.
    """

    context: int  # tokens that prompt and response may have together
    place: str  # for messages

    @abstractmethod
    def load(self, label: str) -> None:
        """Takes over the trainer's current weights, forgets cached prefixes, and answers to `label` from now on."""

    @abstractmethod
    def sample(self, asks: Sequence[Ask], rule: SamplingRule) -> list[list[Draft]]:
        """Continuations per ask, in order."""

    @abstractmethod
    def close(self) -> None:
        """Ends every process and frees the memory that belongs to it. May be called twice."""
