"""AdamW on fp32 masters, clip-norm, non-finite gradients, learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.core.spec import Recipe
from harness.train.optimizer import FIRST_SCALE, LARGEST_SCALE, RAISE_EVERY, Optimizer, learning_rate

RECIPE = Recipe(lr=1e-4, betas=(0.9, 0.95), grad_clip=1.0, weight_decay=0.01)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)).to(dtype)


def give_gradient(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_fp32_is_plain_adamw_after_clip_norm() -> None:
    ours, theirs = network(), network()
    optimizer = Optimizer(ours, RECIPE, 1e-4)
    plain = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(5):
        give_gradient(ours, step, scale=3.0)
        give_gradient(theirs, step, scale=3.0)
        norm = float(nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
        for group in plain.param_groups:
            group["lr"] = 1e-4 * (step + 1)
        plain.step()
        done = optimizer.step(1e-4 * (step + 1))
        assert done.grad_norm == pytest.approx(norm, rel=1e-6)
        assert done.clipped
        assert done.finite
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_bf16_weights_follow_fp32_masters() -> None:
    """Steps far below the resolution of bf16 add up in the masters."""
    model = network(torch.bfloat16)
    start = weights(model)
    optimizer = Optimizer(model, Recipe(grad_clip=1e9), 1e-5)
    for _ in range(200):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(1e-5)
        masters = [optimizer.tensors()[f"weight.{name}"] for name in optimizer.names]
        assert all(m.dtype == torch.float32 for m in masters)
        assert all(torch.equal(p, m.bfloat16()) for p, m in zip(model.parameters(), masters, strict=True))
    for p, old in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(old.float() - p.float(), torch.full_like(old, 0.002).float(), atol=2e-3, rtol=0)
        assert not torch.equal(p, old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_restoring_is_exact(dtype: torch.dtype) -> None:
    model, other = network(dtype), network(dtype)
    one, two = Optimizer(model, RECIPE, 1e-3), Optimizer(other, RECIPE, 1e-3)
    for step in range(3):
        give_gradient(model, step)
        one.step(1e-3)
    two.load({name: t.clone() for name, t in one.tensors().items()})
    for step in range(3, 6):
        give_gradient(model, step)
        give_gradient(other, step)
        one.step(1e-3)
        two.step(1e-3)
    found, expected = two.tensors(), one.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


def test_restoring_weights_alone_forgets_the_moments() -> None:
    model = network()
    optimizer = Optimizer(model, RECIPE, 1e-3)
    saved = {name: t.clone() for name, t in optimizer.tensors().items()}
    give_gradient(model, 0)
    optimizer.step(1e-3)
    optimizer.load(saved, moments=False)
    assert all(torch.equal(t, saved[name]) for name, t in optimizer.tensors().items())
    assert optimizer.tensors().keys() == saved.keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = network()
    optimizer = Optimizer(model, RECIPE, 1e-3)
    give_gradient(model, 0)
    optimizer.step(1e-3)
    before = {name: t.clone() for name, t in optimizer.tensors().items()}
    give_gradient(model, 1)
    next(model.parameters()).grad.view(-1)[0] = bad  # type: ignore[union-attr]
    done = optimizer.step(1e-3)
    assert not done.finite
    assert not math.isfinite(done.grad_norm)
    assert all(torch.equal(t, before[name]) for name, t in optimizer.tensors().items())
    optimizer.zero_grad()
    assert optimizer.step(1e-3).finite


def test_moved_is_the_distance_since_the_mark() -> None:
    model = network()
    optimizer = Optimizer(model, RECIPE, 1e-3)
    assert optimizer.moved() is None
    optimizer.mark()
    before = torch.cat([p.flatten() for p in weights(model)])
    give_gradient(model, 0)
    optimizer.step(1e-2)
    after = torch.cat([p.flatten() for p in weights(model)])
    assert optimizer.moved() == pytest.approx((float((after - before).norm()), float(before.norm())), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ("constant", 0.2, {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        ("linear", 0.0, {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ("linear", 0.2, {0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        ("cosine", 0.0, {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        ("cosine", 0.5, {0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
    ],
)
def test_learning_rates(schedule: str, warmup: float, expected: dict[float, float]) -> None:
    recipe = Recipe.model_validate({"lr_schedule": schedule, "warmup": warmup})
    for fraction, share in expected.items():
        assert learning_rate(recipe, 3e-4, fraction) == pytest.approx(3e-4 * share, abs=1e-12)


def test_float16_gradients_are_scaled_and_an_overflow_is_due_again() -> None:
    """The scale is a power of two, so a gradient comes back as it was; what overflows changes nothing but the scale."""
    model = network(torch.float16)
    optimizer = Optimizer(model, RECIPE, 1e-3)
    assert Optimizer(network(torch.bfloat16), RECIPE, 1e-3).scale == Optimizer(network(), RECIPE, 1e-3).scale == 1.0
    assert optimizer.scale == FIRST_SCALE
    give_gradient(model, 0, scale=1e-3)
    want = float(torch.nn.utils.get_total_norm([p.grad.float() for p in model.parameters() if p.grad is not None]))
    for p in model.parameters():
        assert p.grad is not None
        p.grad *= optimizer.scale
    assert optimizer.step(1e-3).grad_norm == pytest.approx(want, rel=1e-3)
    before = weights(model)
    give_gradient(model, 1)
    next(model.parameters()).grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    done = optimizer.step(1e-3)
    assert (done.overflow, done.finite, optimizer.scale) == (True, False, FIRST_SCALE / 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert not optimizer.step(1e-3, finite=False).overflow, "a loss that is not finite is no matter of scale"
    optimizer.scale = 1.0
    done = optimizer.step(1e-3)
    assert (done.overflow, done.finite, optimizer.scale) == (False, False, 1.0)


def test_the_loss_scale_rises_again_up_to_its_limit() -> None:
    model = network(torch.float16)
    optimizer = Optimizer(model, RECIPE, 1e-3)
    optimizer.scale = LARGEST_SCALE / 2
    for step in range(2 * RAISE_EVERY):
        give_gradient(model, step)
        optimizer.step(1e-4)
        assert optimizer.scale == LARGEST_SCALE / (2 if step < RAISE_EVERY - 1 else 1)
