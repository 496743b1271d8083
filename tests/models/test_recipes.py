"""Model recipes are valid data."""

from __future__ import annotations

import pytest

from harness.core.spec import Recipe, parse
from harness.models.recipes import recipe, recipe_names


@pytest.mark.parametrize("name", ["tiny", "tiny-turns", "tiny-moe", "tiny-moe-32", "smollm2-135m", "default"])
def test_every_recipe_is_a_recipe(name: str) -> None:
    assert name in recipe_names()
    parsed = parse(Recipe, recipe(name), name)
    assert parsed.overrides["rewards.overlong.cache"] < parsed.max_new_tokens if name != "default" else True


def test_tiny_has_the_measured_values() -> None:
    assert recipe("tiny") == {
        "prompts_per_step": 32,
        "max_new_tokens": 35,
        "temperature": 1.0,
        "lr": 3e-4,
        "critic_lr": 2e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.0,
        "grad_clip": 1.0,
        "overrides": {"admission.max_rounds": 3, "rewards.overlong.cache": 8},
    }


def test_other_models_get_the_default_and_a_hub_id_its_own() -> None:
    assert recipe("Qwen/Qwen3-0.6B") == recipe("default")
    assert recipe("HuggingFaceTB/SmolLM2-135M") == recipe("smollm2-135m")
    assert recipe("./runs/tiny") == recipe("tiny")
