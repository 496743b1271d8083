"""Named studies as YAML, with `extends:`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.core.errors import UsageError, near

Data = dict[str, Any]


Kind = Literal["studies", "ablations"]


def preset_names(kind: Kind = "studies") -> list[str]:
    """Bundled studies, or bundled ablations."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder(kind).iterdir() if f.name.endswith(".yaml"))


def load_preset(name: str, kind: Kind = "studies") -> Data:
    """A bundled study by name, or a YAML file by path; `extends` is resolved, later keys win."""
    return _load(name, kind, ())


def _load(name: str, kind: Kind, seen: tuple[str, ...]) -> Data:
    if name in seen:
        raise UsageError(f"extends: {' -> '.join((*seen, name))}", "the files extend one another", "break the circle")
    text = _read(name, kind)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not YAML", " ".join(str(error).split()), "correct the file") from None
    if not isinstance(data, dict):
        raise UsageError(f"{name}: not a mapping", "a study is a mapping of settings", "start from `extends: quick`")
    base = data.pop("extends", None)
    return merge(_load(str(base), kind, (*seen, name)), data) if base else data


def _read(name: str, kind: Kind) -> str:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"study file {name}", "there is no such file", "an existing file, or a preset's name")
        return path.read_text(encoding="utf-8")
    known = preset_names(kind)
    if name not in known:
        raise UsageError(f"preset {name!r}", "there is no such preset", near(name, [*known, "<file>.yaml"]))
    return str((_folder(kind) / f"{name}.yaml").read_text(encoding="utf-8"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Data:
    """`over` on top of `base`; mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _folder(kind: Kind) -> Any:
    return resources.files("harness.presets") / kind
