"""The ratios that are asked of a run of the benchmark, each from the medians of that run alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.bench.run import FAILED
from harness.bench.subjects import ALGORITHMS, REPLAY, TINY

Results = Mapping[str, Mapping[str, Any]]
Number = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A value with the range it is meant to lie in."""

    name: str
    value: Callable[[Results], float | None]
    low: float | None = None
    high: float | None = None
    percent: bool = False

    def said(self, value: float) -> str:
        """The value as printed."""
        return f"{value:.1%}" if self.percent else f"{value:.2f}x"

    @property
    def target(self) -> str:
        """The range in words."""
        if self.low is None and self.high is None:
            return "-"
        if self.low is None or self.high is None:
            bound = self.low if self.low is not None else self.high
            assert bound is not None
            return f"at {'least' if self.low is not None else 'most'} {self._bound(bound)}"
        return f"{self._bound(self.low)} to {self._bound(self.high)}"

    def _bound(self, bound: float) -> str:
        return f"{bound:.0%}" if self.percent else f"{bound:g}x"


def best(results: Results, names: Sequence[str], number: Number) -> float | None:
    """The smallest value among the subjects that ran."""
    found = [number(results[n]) for n in names if n in results and FAILED not in results[n]]
    return min(found) if found else None


def ratio(over: Sequence[str], under: Sequence[str], number: Number) -> Callable[[Results], float | None]:
    """Best of `over` divided by best of `under`."""

    def value(results: Results) -> float | None:
        a, b = best(results, over, number), best(results, under, number)
        return a / b if a is not None and b else None

    return value


def of(name: str, number: Number) -> Callable[[Results], float | None]:
    """A number of one subject."""
    return lambda results: best(results, [name], number)


def step(r: Mapping[str, Any]) -> float:
    """Seconds of a step."""
    return float(r["step_s"])


def passes(r: Mapping[str, Any]) -> float:
    """Seconds of forward and backward."""
    return float(r["forward_s"] + r["backward_s"])


def peak(r: Mapping[str, Any]) -> float:
    """Peak memory."""
    return float(r["memory_mib"]["peak"])


def outside(r: Mapping[str, Any]) -> float:
    """Share of a step that is neither generation, weight sync, forward, backward nor optimizer."""
    return float((r["metrics_s"] + r["detectors_s"] + r["other_s"]) / r["step_s"])


def monitored(r: Mapping[str, Any]) -> float:
    """Share of a step spent on metrics and collapse detectors."""
    return float((r["metrics_s"] + r["detectors_s"]) / r["step_s"])


def synced(r: Mapping[str, Any]) -> float:
    """Share of a step spent on weight sync."""
    return float(r["sync_s"] / r["step_s"])


def of_the_peak(r: Mapping[str, Any]) -> float:
    """Useful operations per second over the measured matrix-multiply rate."""
    return float(r["useful_flops"] / passes(r) / r["matmul_flops_per_s"]) if passes(r) else 0.0


OURS = [f"ours-{s}-{d}" for s in ("vllm", "transformers") for d in ("fp32", "bf16")]
TRL_ALONE = [f"trl-{s}-{d}" for s in ("transformers", "checkpointing") for d in ("fp32", "bf16")]
TRL_ALONE.append("trl-bf16-weights")
TRL_VLLM = ["trl-vllm-fp32", "trl-vllm-bf16"]


def _pairs() -> list[Claim]:
    found = []
    for d, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
        trl, ours, update = [f"trl-transformers-{d}"], [f"ours-vllm-{d}"], f"update-ours-{d}"
        found += [
            Claim(
                name=f"step, {dtype}: TRL with transformers / ours with vLLM",
                value=ratio(trl, ours, step),
                low=5.0 if d == "fp32" else None,
            ),
            Claim(
                name=f"step, {dtype}: TRL with transformers / ours with transformers",
                value=ratio(trl, [f"ours-transformers-{d}"], step),
                low=2.0,
            ),
            Claim(
                name=f"step, {dtype}: TRL with vLLM / ours with vLLM",
                value=ratio([f"trl-vllm-{d}"], ours, step),
                low=2.0,
            ),
            Claim(
                name=f"forward + backward, {dtype}, every row: TRL / ours",
                value=ratio([f"update-trl-{d}"], [f"{update}-every-row"], passes),
                low=2.0,
            ),
            Claim(
                name=f"forward + backward, {dtype}, recorded rewards: TRL / ours",
                value=ratio([f"update-trl-{d}"], [f"{update}-recorded"], passes),
                low=2.5,
            ),
            Claim(
                name=f"update, {dtype}, every row: share of the matrix-multiply rate",
                value=of(f"{update}-every-row", of_the_peak),
                low=0.70 if d == "fp32" else 0.45,
                percent=True,
            ),
            Claim(
                name=f"peak memory, {dtype}, transformers on both sides: ours / TRL",
                value=ratio([f"ours-transformers-{d}"], trl, peak),
                high=0.5,
            ),
            Claim(
                name=f"peak memory, {dtype}: ours / TRL with its default gradient checkpointing",
                value=ratio([f"ours-transformers-{d}"], [f"trl-checkpointing-{d}"], peak),
                high=0.5,
            ),
            Claim(
                name=f"peak memory, {dtype}: ours with vLLM in the process / TRL with transformers",
                value=ratio(ours, trl, peak),
            ),
            Claim(name=f"outside, {dtype}, ours with vLLM", value=of(ours[0], outside), high=0.03, percent=True),
            Claim(
                name=f"outside, {dtype}, ours with transformers",
                value=of(f"ours-transformers-{d}", outside),
                high=0.03,
                percent=True,
            ),
            Claim(name=f"weight sync, {dtype}, ours with vLLM", value=of(ours[0], synced), high=0.05, percent=True),
        ]
    return found


def _scaling() -> list[Claim]:
    found = []
    for work in ("update", "step"):
        base, prompts, siblings = (f"scale-{work}-{size}" for size in ("base", "2x-prompts", "2x-siblings"))
        number = passes if work == "update" else step
        found += [
            Claim(name=f"{work}, twice the prompts: time", value=ratio([prompts], [base], number), low=1.8, high=2.2),
            Claim(name=f"{work}, twice the siblings: time", value=ratio([siblings], [base], number), high=2.1),
            Claim(name=f"{work}, twice the prompts: peak memory", value=ratio([prompts], [base], peak), high=1.05),
        ]
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim(name="step: TRL's best with transformers / our best", value=ratio(TRL_ALONE, OURS, step), low=5.0),
    Claim(name="step: TRL's best with vLLM / our best", value=ratio(TRL_VLLM, OURS, step), low=2.0),
    *_pairs(),
    Claim(
        name="step, float32, four optimizer steps: TRL with transformers / ours with vLLM",
        value=ratio(["trl-transformers-fp32-x4"], ["ours-vllm-fp32-x4"], step),
    ),
    Claim(name="PPO / GRPO, time of a step", value=ratio(["algorithm-ppo"], ["algorithm-grpo"], step)),
    Claim(name="PPO / GRPO, peak memory", value=ratio(["algorithm-ppo"], ["algorithm-grpo"], peak)),
    *_scaling(),
    *(
        Claim(
            name=f"Routing Replay {m} / off, time of a step",
            value=ratio([f"replay-{m}"], ["replay-off"], step),
            high=1.1,
        )
        for m in REPLAY[1:]
    ),
    *(
        Claim(name=f"monitoring, {name}", value=of(name, monitored), high=limit, percent=True)
        for name, limit in (*((f"algorithm-{a}", 0.03) for a in ALGORITHMS), *((f"tiny-{a}", 0.15) for a in TINY))
    ),
)
