"""Rollout-time metrics: hand-computed values, refused groups, empty and broken batches, and their cost."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.metrics import is_known, make_row
from harness.core.parts import Advantages
from harness.core.types import RolloutGroup
from harness.monitor.numbers import quantiles
from harness.monitor.rollout import rollout_metrics
from harness.monitor.sampled import count_sampled
from harness.monitor.step import step_metrics
from tests.monitor.builders import batch, group, trace, trajectory


def measure(groups: list[RolloutGroup], refused: tuple[RolloutGroup, ...] = (), **more: Any) -> dict[str, float | None]:
    data = batch(groups, **{k: more.pop(k) for k in ("width", "garbage") if k in more})
    mean = data.reward.mean() if data.num_rows else 0.0
    advantages = Advantages(advantages=(data.reward - mean)[:, None] * data.mask)
    found = rollout_metrics(data, advantages, data.reward - 0.5, count_sampled(groups, refused), **more)
    assert all(is_known(key) for key in found)
    return found


MIXED = [
    group(trajectory("a", 0, [1, 2, 3], score=1.0), trajectory("a", 1, [4], score=0.0)),
    group(trajectory("b", 0, [5, 6], score=1.0), trajectory("b", 1, [5, 6], score=1.0, truncated=True)),
]


def test_reward_and_signal() -> None:
    found = measure(MIXED)
    assert found["reward/mean"] == 0.75
    assert found["reward/std"] == pytest.approx(np.std([1, 0, 1, 1]))
    assert found["reward/shaped_mean"] == pytest.approx(0.25)
    assert found["reward/group_std"] == pytest.approx((math.sqrt(0.5) + 0) / 2)
    assert (found["signal/zero_var_frac"], found["signal/zero_var_frac_all0"], found["signal/zero_var_frac_all1"]) == (
        0.5, 0.0, 0.5,
    )  # fmt: skip
    assert (found["signal/effective_groups"], found["signal/oversample_factor"]) == (2, 1.0)


def test_lengths() -> None:
    found = measure(MIXED)
    assert (found["len/mean"], found["len/p50"], found["len/max"]) == (2.0, 2.0, 3.0)
    assert found["len/p95"] == pytest.approx(np.quantile([3, 1, 2, 2], 0.95))
    assert (found["len/correct_mean"], found["len/incorrect_mean"]) == (pytest.approx(7 / 3), 1.0)
    assert found["len/trunc_rate"] == 0.25
    right = measure([MIXED[1]])
    assert right["len/incorrect_mean"] is None


def test_entropy_weighs_tokens_and_rows() -> None:
    groups = [group(trajectory("a", 0, [1, 2, 3], entropy=[0.1, 0.2, 0.3], logp=[-1, -2, -3]),
                    trajectory("a", 1, [4], entropy=[1.0], logp=[-4]))]  # fmt: skip
    found = measure(groups, garbage=math.nan, width=7)
    assert found["entropy/exact"] == pytest.approx(0.4)
    assert found["entropy/exact_seq"] == pytest.approx(0.6)
    assert found["entropy/p10"] == pytest.approx(np.quantile([0.1, 0.2, 0.3, 1.0], 0.1))
    assert found["entropy/p90"] == pytest.approx(np.quantile([0.1, 0.2, 0.3, 1.0], 0.9))
    assert found["entropy/sampled"] == pytest.approx(2.5)


def test_refused_groups_count_wherever_sampling_is_described() -> None:
    stuck: dict[str, Any] = {"truncated": True, "extracted": None, "entropy": [0.0] * 20, "logp": [0.0] * 20}
    refused = group(trajectory("c", 0, [1] * 20, **stuck), trajectory("c", 1, [1] * 20, **stuck))
    found = measure(MIXED, (refused,))
    assert found["reward/mean"] == 0.5
    assert found["len/max"] == 20
    assert found["len/trunc_rate"] == 0.5
    assert found["text/nonvalid_rate"] == pytest.approx(2 / 6)
    assert found["text/rep_rate"] == 1.0
    assert found["text/confident_run_max"] == 20
    assert found["text/distinct_in_group"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["entropy/exact"] == pytest.approx(0.4 * 8 / 48)
    assert found["signal/zero_var_frac_all0"] == pytest.approx(1 / 3)
    assert found["signal/oversample_factor"] == 1.5
    assert found["signal/effective_rows_frac"] == pytest.approx(4 / 6)
    assert (found["budget/sampled_tokens"], found["budget/prompts"]) == (48, 3)
    assert found["adv/abs_max"] == pytest.approx(0.75)


def test_short_responses_have_no_repetition() -> None:
    found = measure(MIXED)
    assert "text/rep_rate" not in found
    assert make_row({"step": 1}, found)["text/rep_rate"] is None


def test_padding_and_garbage_do_not_matter() -> None:
    plain = measure(MIXED)
    for garbage in (math.nan, math.inf, 1e30):
        assert measure(MIXED, width=9, garbage=garbage) == plain


def test_group_of_one_has_no_spread() -> None:
    found = measure([group(trajectory("a", 0, [1, 2], score=1.0))])
    assert found["signal/zero_var_frac"] is None
    assert found["reward/group_std"] is None


def test_reference_kl() -> None:
    old = torch.full((4, 3), -1.0)
    reference = torch.full((4, 3), -1.5)
    found = measure(MIXED, old_logp=old, ref_logp=reference)
    k3 = math.exp(-0.5) - 1 + 0.5
    assert found["kl_ref/k1"] == pytest.approx(0.5)
    assert found["kl_ref/k3"] == pytest.approx(k3)
    assert found["kl_ref/k1_seq"] == pytest.approx(0.5 * 8 / 4)
    assert found["kl_ref/k3_seq"] == pytest.approx(k3 * 8 / 4)
    assert found["mismatch/abs_dlogp_mean"] == pytest.approx(0.5)
    assert found["mismatch/n"] == 8


def test_explained_variance() -> None:
    data = batch(MIXED)
    returns = torch.rand(4, 3)
    counts = count_sampled(MIXED)
    for values, expected in ((returns, 1.0), (torch.zeros(4, 3), 0.0)):
        advantages = Advantages(advantages=torch.zeros(4, 3), returns=returns)
        found = rollout_metrics(data, advantages, data.reward, counts, values=values)
        assert found["value/explained_var"] == pytest.approx(expected, abs=1e-6)


def test_components_are_averaged() -> None:
    data = batch(MIXED)
    from dataclasses import replace

    data = replace(data, components={"format": torch.tensor([1.0, 0.0, 0.0, 0.0])})
    found = rollout_metrics(data, Advantages(advantages=torch.zeros(4, 3)), data.reward, count_sampled(MIXED))
    assert found["reward/component/format"] == 0.25
    assert is_known("reward/component/format")


def test_empty_and_all_masked_batches_do_not_crash() -> None:
    empty = measure([])
    assert empty["budget/sampled_tokens"] == 0
    assert empty["reward/mean"] is None
    silent = measure([group(trajectory("a", 0, [], score=0.0), trajectory("a", 1, [], score=0.0))])
    assert silent["len/mean"] == 0.0
    hidden = measure([group(trajectory("a", 0, [1, 2], mask=[False, False]), trajectory("a", 1, [1], mask=[False]))])
    assert hidden["len/max"] == 0.0
    assert measure([], tuple(MIXED))["len/max"] == 3.0


def test_non_finite_inputs_are_left_out() -> None:
    groups = [group(trajectory("a", 0, [1, 2], score=math.nan, logp=[math.nan, -1.0], entropy=[math.inf, 0.5]),
                    trajectory("a", 1, [1], score=1.0))]  # fmt: skip
    found = measure(groups)
    assert found["reward/mean"] == 1.0
    assert found["health/nonfinite_reward"] == 1
    assert found["entropy/exact"] == pytest.approx((0.5 + 0.4) / 2)
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_quantiles_equal_numpy() -> None:
    x = torch.rand(101, dtype=torch.float64).sort().values
    shares = (0.0, 0.001, 0.1, 0.5, 0.999, 1.0)
    assert [float(q) for q in quantiles(x, shares)] == pytest.approx(np.quantile(x.numpy(), shares).tolist())


def tiny_setting() -> dict[str, Any]:
    """256 rows of up to 30 tokens, 4 updates of 64 rows."""
    rng = np.random.default_rng(0)
    groups = []
    for g in range(32):
        rows = []
        for s in range(8):
            n = int(rng.integers(3, 31))
            ids, logp = rng.integers(0, 25, n).tolist(), (-rng.random(n)).tolist()
            rows.append(trajectory(f"p{g}", s, ids, score=float(rng.integers(0, 2)), logp=logp, entropy=logp))
        groups.append(group(*rows))
    data = batch(groups, width=30)
    old = data.behaviour_logp + 0.01 * torch.randn(256, 30)
    parts = [slice(64 * k, 64 * k + 64) for k in range(4)]
    traces = [
        trace(old[p] + 0.01, old[p], data.mask[p], behaviour_logp=data.behaviour_logp[p], penalties={"kl": 0.1},
              critic={"loss": 0.1, "clip_frac": 0.1, "grad_norm": 1.0})
        for p in parts
    ]  # fmt: skip
    advantages = Advantages(advantages=torch.randn(256, 1) * data.mask, returns=old)
    return {"groups": groups, "data": data, "advantages": advantages, "traces": traces, "old": old}


def test_all_metrics_of_a_tiny_step_cost_little() -> None:
    """About 6 ms on one idle core, against 200 ms for the step; the limit here leaves room for a busy machine."""
    setting = tiny_setting()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = math.inf
        for _ in range(20):
            start = time.process_time()
            data, counts = setting["data"], count_sampled(setting["groups"], carried=0)
            found = step_metrics(
                data, setting["advantages"], data.reward, counts, setting["traces"],
                old_logp=setting["old"], ref_logp=setting["old"], values=setting["old"], critic_skipped=0,
            )  # fmt: skip
            best = min(best, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    row = make_row({"step": 1}, found)
    never = ("moe/", "perf/", "update/", "grad/noise", "budget/fwd", "budget/bwd", "mismatch/injected")
    assert [k for k, v in row.items() if v is None and "/" in k and not k.startswith(never)] == []
    assert best < 0.2  # processor time, ten times what a slow machine takes
