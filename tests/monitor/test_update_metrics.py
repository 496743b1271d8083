"""Update-time metrics against loop-style re-statements, identities, and invariance to padding and row order."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.metrics import is_known
from harness.monitor.update import parameter_change, update_metrics
from tests.monitor.builders import trace


def oracle(rows: list[list[float]], last: str = "last") -> dict[str, float]:
    """Metrics of log-ratios d per row, by loops over floats."""
    tokens = [d for row in rows for d in row]
    r = [math.exp(d) for d in tokens]
    s = [math.exp(sum(row) / len(row)) for row in rows if row]
    full = [sum(row) for row in rows if row]

    def ess(w: list[float]) -> float:
        return sum(w) ** 2 / (len(w) * sum(x * x for x in w))

    mean_full = sum(full) / len(full)
    return {
        f"{key}/{last}": value
        for key, value in {
            "ratio/tok_mean": sum(r) / len(r),
            "ratio/tok_max": max(r),
            "ratio/tok_min": min(r),
            "ratio/tok_q01": float(np.quantile(r, 0.01)),
            "ratio/tok_q999": float(np.quantile(r, 0.999)),
            "ratio/seq_geo_mean": sum(s) / len(s),
            "ratio/seq_geo_q99": float(np.quantile(s, 0.99)),
            "ratio/seq_full_logsd": math.sqrt(sum((x - mean_full) ** 2 for x in full) / len(full)),
            "ratio/ess_tok": ess(r),
            "ratio/ess_seq": ess(s),
            "ratio/ess_seq_full": ess([math.exp(x) for x in full]),
            "kl_old/k1": -sum(tokens) / len(tokens),
            "kl_old/k3": sum(math.exp(d) - 1 - d for d in tokens) / len(tokens),
        }.items()
    }


logratios = st.lists(st.lists(st.floats(-2, 2, width=32), max_size=6), min_size=1, max_size=6).filter(any)


def padded(rows: list[list[float]], width: int, garbage: float) -> tuple[torch.Tensor, torch.Tensor]:
    grid = torch.tensor([[*row, *[garbage] * (width - len(row))] for row in rows], dtype=torch.float32)
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in rows])
    return grid, mask


@settings(max_examples=60, deadline=None)
@given(logratios, st.sampled_from([0.0, math.nan, math.inf, 1e30]), st.integers(6, 9))
def test_ratio_metrics_equal_the_loops(rows: list[list[float]], garbage: float, width: int) -> None:
    d, mask = padded(rows, width, garbage)
    found = update_metrics([trace(d, torch.zeros_like(d), mask)])
    for key, value in oracle(rows).items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@settings(max_examples=30, deadline=None)
@given(logratios, st.randoms())
def test_row_order_does_not_matter(rows: list[list[float]], random: Any) -> None:
    mixed = list(rows)
    random.shuffle(mixed)
    a, b = (update_metrics([trace(d, torch.zeros_like(d), m)]) for d, m in (padded(x, 6, 0.0) for x in (rows, mixed)))
    for key, value in a.items():
        assert b[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_equal_policies_have_ratio_one_and_no_divergence() -> None:
    logp = -torch.rand(4, 5)
    found = update_metrics([trace(logp, logp), trace(logp, logp)])
    assert all(found[f"ratio/{k}/max"] == 1.0 for k in ("tok_mean", "tok_q001", "seq_geo_max", "ess_tok", "ess_seq"))
    assert all(found[f"kl_old/{k}/max"] == 0.0 for k in ("k1", "k3"))
    assert found["clip/tok_any/max"] == 0.0


def test_single_on_policy_update_has_no_ratio() -> None:
    logp = -torch.rand(4, 5)
    found = update_metrics([trace(logp, logp, on_policy=True)])
    assert not [key for key in found if key.startswith(("ratio/", "clip/", "kl_old/"))]
    assert found["grad/norm_pre/first"] == 1.0
    two = update_metrics([trace(logp, logp, on_policy=True), trace(logp + 0.1, logp)])
    assert two["ratio/tok_mean/first"] == 1.0
    assert two["ratio/tok_mean/last"] == pytest.approx(math.exp(0.1), rel=1e-5)


def test_no_clip_fraction_where_nothing_clips() -> None:
    found = update_metrics([trace(torch.zeros(2, 3), torch.ones(2, 3), has_clip=False)])
    assert not [key for key in found if key.startswith("clip/")]
    assert "ratio/tok_mean/last" in found


def test_clip_fractions_of_tokens_and_rows() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    low = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()  # row 1 and 2: only where masked
    high = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    zeros = torch.zeros(3, 4)
    found = update_metrics([trace(zeros, zeros, mask, clipped_low=low, clipped_high=high, outside=low | high)])
    expected = {
        "tok_low": 1 / 6,
        "tok_high": 2 / 6,
        "tok_any": 3 / 6,
        "seq_low": 1 / 2,
        "seq_high": 1.0,
        "seq_any": 1.0,
    }
    for key, value in (expected | {"outside_range": 3 / 6}).items():
        assert found[f"clip/{key}/last"] == pytest.approx(value), key


def test_first_last_and_max() -> None:
    zeros = torch.zeros(2, 3)
    steps = [trace(zeros, zeros, grad_norm=g, grad_clipped=g > 1.5, penalties={"kl": g}) for g in (1.0, 3.0, 2.0)]
    found = update_metrics(steps)
    assert [found[f"grad/norm_pre/{s}"] for s in ("first", "last", "max")] == [1.0, 2.0, 3.0]
    assert [found[f"penalty/kl/{s}"] for s in ("first", "last", "max")] == [1.0, 2.0, 3.0]
    assert found["grad/clipped_frac"] == pytest.approx(2 / 3)
    assert found["budget/optimizer_steps"] == 3
    assert found["budget/grad_tokens"] == 18


def test_critic_numbers() -> None:
    zeros = torch.zeros(2, 3)
    found = update_metrics([trace(zeros, zeros, critic={"loss": 0.3, "clip_frac": 0.1, "grad_norm": 2.0})])
    assert (found["value/loss/last"], found["value/clip_frac/last"], found["grad/norm_critic/max"]) == (0.3, 0.1, 2.0)


def test_mismatch_equals_the_formulas() -> None:
    old, behaviour = -torch.rand(3, 4).double(), -torch.rand(3, 4).double()
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    found = update_metrics([trace(old, old, mask, behaviour_logp=behaviour)])
    e, p, q = ((x[mask]).float().double().numpy() for x in (old - behaviour, old.exp(), behaviour.exp()))
    assert found["mismatch/n"] == 4
    assert found["mismatch/abs_dlogp_mean"] == pytest.approx(np.abs(e).mean(), rel=1e-5)
    assert found["mismatch/abs_dlogp_max"] == pytest.approx(np.abs(e).max(), rel=1e-5)
    assert found["mismatch/k3"] == pytest.approx((np.exp(e) - 1 - e).mean(), rel=1e-4)
    assert found["mismatch/chi2_tok"] == pytest.approx(np.exp(2 * e).mean() - 1, rel=1e-4)
    assert found["mismatch/pearson_p"] == pytest.approx(np.corrcoef(p, q)[0, 1], rel=1e-4)


def test_mismatch_of_the_sampling_model_is_zero() -> None:
    logp = -torch.rand(3, 4)
    found = update_metrics([trace(logp, logp, on_policy=True), trace(logp + 1, logp)])
    assert found["mismatch/n"] == 12  # the second says nothing: its old log-probs are the behaviour's own
    assert found["mismatch/abs_dlogp_max"] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_counted_and_left_out(bad: float) -> None:
    logp = torch.zeros(2, 3)
    logp[0, 0] = bad
    found = update_metrics([trace(logp, torch.zeros(2, 3), loss=bad, grad_norm=bad, nonfinite=1)])
    assert found["health/nonfinite_logits"] == 1
    assert found["health/nonfinite_loss"] == found["health/nonfinite_grad"] == found["health/skipped_updates"] == 1
    assert found["ratio/tok_mean/last"] == 1.0
    assert found["loss/total/last"] is None
    assert found["budget/optimizer_steps"] == 0


def test_nothing_to_measure() -> None:
    none = update_metrics([])
    assert none["budget/optimizer_steps"] == 0
    assert none["grad/clipped_frac"] is None
    zeros = torch.zeros(2, 3)
    masked = update_metrics([trace(zeros, zeros, torch.zeros(2, 3))])
    assert "ratio/tok_mean/last" not in masked
    update_metrics([trace(torch.zeros(0, 3), torch.zeros(0, 3)), trace(torch.zeros(2, 0), torch.zeros(2, 0))])
    assert all(is_known(key) for key in (*none, *masked))


def test_exploded_ratio_is_a_number() -> None:
    found = update_metrics([trace(torch.full((1, 2), 1e4), torch.zeros(1, 2))])
    assert found["ratio/tok_max/last"] is not None
    assert found["ratio/tok_max/last"] > 1e300
    assert found["ratio/ess_tok/last"] == pytest.approx(1.0)


def test_parameter_change() -> None:
    before = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    found = parameter_change(before, [torch.tensor([3.0, 0.3]), torch.tensor([4.4])])
    assert found["update/param_norm"] == pytest.approx(0.5, rel=1e-6)
    assert found["update/rel"] == pytest.approx(0.1, rel=1e-6)
    assert found["update/bf16_unchanged"] == pytest.approx(1 / 3)
    assert parameter_change([], []) == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-2, 2, width=32), max_size=9), min_size=2, max_size=12).filter(any))
def test_the_ratio_by_length_equals_the_loops(rows: list[list[float]]) -> None:
    d, mask = padded(rows, 9, math.nan)
    found = update_metrics([trace(d, torch.zeros_like(d), mask)])
    expected: dict[str, float] = {}
    for low, high in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16)):
        kept = [row for row in rows if low < len(row) <= high]
        if len(kept) < 2:
            continue
        full, geo = [sum(row) for row in kept], [sum(row) / len(row) for row in kept]
        w = [math.exp(x) for row in kept for x in row]
        expected |= {
            f"{high}/rows": len(kept),
            f"{high}/full_logsd": float(np.std(full)), f"{high}/geo_logsd": float(np.std(geo)),
            f"{high}/ess_tok": sum(w) ** 2 / (len(w) * sum(x * x for x in w)),
        }  # fmt: skip
    by_length = {key.removeprefix("ratio/by_length/"): v for key, v in found.items() if "by_length" in key}
    assert by_length == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert all(is_known(key) for key in found)
