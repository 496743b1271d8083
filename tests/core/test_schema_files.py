"""The published schemas are current, and what the harness writes satisfies them."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from harness.core import schema
from harness.core.results import read_lines
from tests.fakes.run_folders import write_fake_study

OF_OTHERS = {"routing", "microscope", "recovery", "ablation", "trials", "search", "benchmarks"}


@pytest.mark.parametrize("name", sorted(schema.schemas()))
def test_committed_schema_is_current(name: str) -> None:
    text = (schema.DIRECTORY / name).read_text(encoding="utf-8")
    assert text == schema.render(schema.schemas()[name]), "run: python -m harness.core.schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_no_stale_schema_file() -> None:
    assert {p.name for p in schema.DIRECTORY.glob("*.json")} == set(schema.schemas())


def test_fake_study_satisfies_the_schemas(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", arms=("PPO", "GRPO"), seeds=(0,), steps=10, collapsed=[("GRPO", 0)])
    validate_study(tmp_path / "s")


def validate_study(path: Path) -> None:
    """Every file of a study folder against its schema."""
    known = {name.split(".")[0]: jsonschema.Draft202012Validator(s) for name, s in schema.schemas().items()}
    known["study"].validate(yaml.safe_load((path / "study.yaml").read_text()))
    seen = set()
    for file in path.glob("runs/*/*.json*"):
        rows = [json.loads(file.read_text())] if file.suffix == ".json" else list(read_lines(file))
        for row in rows:
            known[file.stem].validate(row)
        seen.add(file.stem)
    assert seen - {"validity"} == set(known) - {"study", "validity", *OF_OTHERS}


def test_steps_schema_refuses_a_misspelt_column(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", arms=("GRPO",), seeds=(0,), steps=2)
    row = next(read_lines(next(tmp_path.glob("s/runs/*/steps.jsonl"))))
    validator = jsonschema.Draft202012Validator(schema.steps_schema())
    validator.validate(row | {"penalty/kl/last": 0.1, "reward/component/format": 0.5})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(row | {"reward/men": 0.1})
