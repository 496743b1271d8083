"""JSON Schemas of the files of a study folder, generated from the models and the metric dictionary.

`python -m harness.core.schema` writes results/schema/*.schema.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.core.ablation import Ablation, Trials
from harness.core.benchmarks import BenchmarkRecord
from harness.core.metrics import METRICS, PATTERNS, ROW_COLUMNS, Metric, flat_keys
from harness.core.microscope import Microscope
from harness.core.recovery import RecoveryReport
from harness.core.results import (
    SCHEMA_VERSION,
    EvalRecord,
    EventRecord,
    RunResult,
    SampleRecord,
    ValidityRecord,
    write_atomic,
)
from harness.core.routing_log import RoutingRecord
from harness.core.search import SearchRecord
from harness.core.spec import RunSpec, StudySpec

DIRECTORY = Path(__file__).resolve().parents[2] / "results" / "schema"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MODELS: dict[str, tuple[type[BaseModel], str]] = {
    "study": (StudySpec, "study.yaml"),
    "spec": (RunSpec, "spec.json"),
    "result": (RunResult, "result.json"),
    "validity": (ValidityRecord, "validity.json"),
    "evals": (EvalRecord, "one line of evals.jsonl"),
    "events": (EventRecord, "one line of events.jsonl"),
    "samples": (SampleRecord, "one line of samples.jsonl"),
    "routing": (RoutingRecord, "one line of routing.jsonl, of a mixture of experts"),
    "benchmarks": (BenchmarkRecord, "benchmarks.json, and eval.json of an evaluation"),
    "microscope": (Microscope, "microscope.json"),
    "ablation": (Ablation, "ablation.json of an ablation"),
    "trials": (Trials, "trials.json: arm -> Optuna trial"),
    "search": (SearchRecord, "search.json of a hyper-parameter search"),
    "recovery": (RecoveryReport, "report/recovery.json of a recovery study"),
}


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> schema."""
    found = {f"{name}.schema.json": _of_model(model, title) for name, (model, title) in _MODELS.items()}
    return found | {"steps.schema.json": steps_schema()}


def _of_model(model: type[BaseModel], title: str) -> dict[str, Any]:
    body = model.model_json_schema(mode="validation")
    return {"$schema": _DRAFT, **body, "title": title, "x-schema-version": SCHEMA_VERSION}


def steps_schema() -> dict[str, Any]:
    """One row of steps.jsonl; a metric that is absent means the same as null."""
    properties: dict[str, Any] = {}
    for column in ROW_COLUMNS:
        number = "integer" if column.integer else "number"
        nullable = column.key in ("lr", "budget_fraction")
        properties[column.key] = {
            "type": [number, "null"] if nullable else number,
            "description": f"{column.doc} [{column.unit}]" if column.unit else column.doc,
        }
    properties["schema_version"]["const"] = SCHEMA_VERSION
    for metric in METRICS:
        properties |= {key: _of_metric(metric, key) for key in flat_keys(metric)}
    return {
        "$schema": _DRAFT,
        "title": "one line of steps.jsonl",
        "type": "object",
        "properties": properties,
        "patternProperties": {pattern: {"type": ["number", "null"], "description": doc} for pattern, doc in PATTERNS},
        "required": [c.key for c in ROW_COLUMNS if c.key not in ("lr", "budget_fraction")],
        "additionalProperties": False,
        "x-schema-version": SCHEMA_VERSION,
    }


def _of_metric(metric: Metric, key: str) -> dict[str, Any]:
    at = {"first": ", at the step's first update", "last": ", at its last update", "max": ", maximum over its updates"}
    when = at[key.rpartition("/")[2]] if metric.when == "update" else ""
    described: dict[str, Any] = {
        "type": ["number", "null"],
        "description": f"{metric.formula}{when} [{metric.unit}]",
        "x-aggregation": metric.aggregation,
        "x-when": metric.when,
    }
    if metric.not_applicable:
        described["x-null"] = metric.not_applicable
    return described


def render(schema: dict[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write(directory: Path = DIRECTORY) -> list[Path]:
    """Writes all schema files."""
    written = []
    for name, schema in schemas().items():
        write_atomic(directory / name, render(schema))
        written.append(directory / name)
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY):
        sys.stdout.write(f"{path}\n")
