"""The import directions hold, third parties stay behind their fences, and nothing imports itself in a circle."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture import rules
from tests.architecture.source import modules, snippet


def _report(problems: list[str]) -> str:
    return "\n" + "\n".join(problems)


def test_import_directions() -> None:
    problems = [p for module in modules().values() for p in rules.forbidden_imports(module)]
    assert not problems, _report(problems)


def test_third_parties_stay_behind_their_fences() -> None:
    problems = [p for module in modules().values() for p in rules.foreign_imports(module)]
    assert not problems, _report(problems)


def test_no_mutual_imports() -> None:
    names = set(modules())
    graph = {
        name: {i.target for i in m.imports if i.target in names and not (i.lazy or i.typing_only)} - {name}
        for name, m in modules().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("harness.core.x", "import algorithms"),
        ("harness.core.x", "from harness.stats import estimate"),
        ("harness.core.x", "def f():\n    from harness.rollout import collate"),
        ("harness.stats.x", "from harness.core.errors import UsageError"),
        ("algorithms.parts.x", "from harness.train import objective"),
        ("tasks.x", "import algorithms.grpo"),
        ("harness.train.x", "from harness.rollout.collate import collate"),
        ("harness.rollout.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import harness.train.loop"),
        ("harness.monitor.x", "from harness.stats import estimate"),
        ("harness.run", "from harness.models import load"),
        ("harness.run", "import harness.backends.samplers.transformers"),
        ("harness.run", "from harness.study import x"),
        ("harness.models.coldstart", "import tasks.chain"),
        ("harness.models.other", "def f():\n    import tasks.chain"),
        ("harness.study.x", "from algorithms import grpo"),
        ("harness.study.x", "from harness.models import load"),
        ("harness.report.x", "from harness.core import algorithm"),
        ("harness.report.x", "from harness.monitor import rollout"),
        ("harness.attic.x", "x = 1"),
        ("harness.train.x", "import importlib\nimportlib.import_module('harness.models.load')"),
    ],
)
def test_the_rules_catch_a_wrong_direction(name: str, text: str) -> None:
    assert list(rules.forbidden_imports(snippet(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("harness.core.registry", "def f():\n    importlib.import_module('tasks')"),
        ("harness.core.x", "from harness import NUMERICS_VERSION\nfrom harness.core.errors import UsageError"),
        ("harness.run", "def f():\n    from harness.models.load import load"),
        ("harness.run", "def f():\n    importlib.import_module('harness.backends.samplers.vllm')"),
        ("harness.models.coldstart", "def f():\n    from tasks.chain import Chain"),
        ("harness.study.x", "from algorithms.rosters import roster\nfrom harness.run import execute"),
        ("harness.report.x", "from harness.core.results import RunResult\nfrom harness.stats.estimate import mean_t"),
        ("harness.evaluate.x", "from harness.stats.estimate import mean_t"),
        ("harness.cli", "import harness.study, harness.report, algorithms, tasks"),
    ],
)
def test_the_rules_allow_a_right_direction(name: str, text: str) -> None:
    assert not list(rules.forbidden_imports(snippet(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("harness.run", "def f():\n    import mlflow"),
        ("harness.study.x", "import mlflow"),
        ("harness.backends.samplers.transformers", "import vllm"),
        ("harness.backends.executors.local", "import ray"),
        ("harness.cli", "import optuna"),
        ("harness.stats.x", "import matplotlib.pyplot as plt"),
        ("harness.study.x", "import pandas as pd"),
        ("harness.report.x", "import torch"),
        ("harness.stats.x", "def f():\n    import torch"),
        ("harness.train.x", "import scipy.special"),
        ("harness.rollout.x", "import requests"),
        ("harness.core.x", "from jaxtyping import Float"),
        ("harness.core.x", "import transformers"),
        ("algorithms.parts.x", "import numpy as np"),
    ],
)
def test_the_fences_catch_a_trespasser(name: str, text: str) -> None:
    assert list(rules.foreign_imports(snippet(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("harness.backends.samplers.vllm", "import vllm"),
        ("harness.backends.executors.ray", "import ray"),
        ("harness.backends.trackers.mlflow", "from mlflow.tracking import MlflowClient"),
        ("harness.study.tune", "import optuna"),
        ("harness.report.figures", "import matplotlib, pandas"),
        ("harness.train.x", "import torch, numpy, safetensors.torch"),
        ("harness.core.shapes", "try:\n    from jaxtyping import Float\nexcept ImportError:\n    Float = None"),
    ],
)
def test_the_fences_have_gates(name: str, text: str) -> None:
    assert not list(rules.foreign_imports(snippet(name, text)))
