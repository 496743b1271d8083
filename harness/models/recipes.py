"""Model recipes: what a model needs to train at all, as data under `harness/presets/recipes`."""

from __future__ import annotations

from importlib import resources
from typing import Any

from harness.core.errors import UsageError

DEFAULT = "default"


def recipe_names() -> list[str]:
    """The models that have a recipe of their own, and `default`."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def recipe(model_name: str) -> dict[str, Any]:
    """The fields of `Recipe` for a model by name; a model without a recipe gets `default`."""
    return {key: value for key, value in _content(model_name).items() if key != "eval"}


def held_out(model_name: str) -> dict[str, Any]:
    """The fields of `EvalSpec` that a model of this size can afford."""
    return dict(_content(model_name).get("eval", {}))


def _content(model_name: str) -> dict[str, Any]:
    import yaml

    names = recipe_names()
    key = model_name.rsplit("/", 1)[-1].lower()
    chosen = key if key in names else DEFAULT
    content = yaml.safe_load((_folder() / f"{chosen}.yaml").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UsageError(f"recipe {chosen!r}", "the file is no mapping", "fields of Recipe, e.g. `lr: 1.0e-5`")
    return content


def _folder() -> Any:
    return resources.files("harness.presets") / "recipes"
