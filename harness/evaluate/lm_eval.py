"""Benchmarks through EleutherAI's lm-evaluation-harness: our task files, local data, k samples per question."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.core.errors import UsageError, near

METRIC = "avg_at_k"
_CPU_ENGINE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How responses are made; the same for every model of a table."""

    engine: Literal["hf", "vllm"]
    dtype: str
    device: str
    samples: int  # k of avg@k
    temperature: float  # 0: greedy
    max_new_tokens: int
    limit: int | None  # first questions only
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question as lm-eval logged it."""

    doc: Mapping[str, Any]
    prompt: str  # after the chat template
    responses: tuple[str, ...]
    score: float  # lm-eval's metric for it


def benchmark_names() -> list[str]:
    """Benchmarks whose task files ship with the project."""
    folder = files("harness.evaluate") / "benchmarks"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def task_file(name: str) -> dict[str, Any]:
    """The lm-eval configuration of a benchmark."""
    if name not in benchmark_names():
        raise UsageError(f"benchmark {name!r}", "no task file of that name", near(name, benchmark_names()))
    text = (files("harness.evaluate") / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def evaluate_benchmark(
    name: str, data: Path, model: Any, how: Generation, score: Callable[[Mapping[str, Any], Sequence[str]], float]
) -> tuple[float, list[Answered]]:
    """(lm-eval's own figure, every question with its responses) for a model folder or id, or a model object of lm-eval.

    `score(doc, responses)` is the share of right responses, what the metric averages over questions.
    """
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    config = task_file(name)
    config["dataset_kwargs"] = {"data_files": {"test": str(data.resolve())}}
    config["process_results"] = lambda doc, results: {METRIC: score(doc, _texts(results))}
    config["repeats"] = how.samples
    config["filter_list"] = [{"name": "all", "filter": [{"function": "take_first_k", "k": how.samples}]}]
    config["generation_kwargs"] = {
        **config["generation_kwargs"],
        "max_gen_toks": how.max_new_tokens,
        "do_sample": how.temperature > 0,
        "temperature": how.temperature,
    }
    if how.engine == "vllm" and how.device == "cpu":
        for variable, value in _CPU_ENGINE.items():
            os.environ.setdefault(variable, value)
    found = lm_eval.simple_evaluate(
        model=how.engine if isinstance(model, str) else model,
        model_args=_model_args(model, how) if isinstance(model, str) else None,
        tasks=[ConfigurableTask(config=config)],
        task_manager=TaskManager(include_defaults=False),  # reading its thousands of files takes a minute of CPU
        batch_size="auto" if how.engine == "vllm" else 16,
        device=how.device if how.engine == "hf" else None,
        limit=how.limit,
        bootstrap_iters=0,
        apply_chat_template=True,
        log_samples=True,
        random_seed=how.seed,
        numpy_random_seed=how.seed,
        torch_random_seed=how.seed,
    )
    assert found is not None
    figure = float(found["results"][name][f"{METRIC},all"])
    return figure, [_answered(sample) for sample in sorted(found["samples"][name], key=lambda s: int(s["doc_id"]))]


def _model_args(model: str, how: Generation) -> dict[str, Any]:
    shared: dict[str, Any] = {"pretrained": model, "dtype": how.dtype}
    if how.engine == "hf":
        return shared
    return {
        **shared,
        "enforce_eager": how.device == "cpu",
        "max_model_len": how.max_new_tokens + 1024,
        "seed": how.seed,
    }


def _texts(results: Sequence[Any]) -> list[str]:
    """lm-eval hands over one entry per request: the list of its k responses."""
    return [str(text) for entry in results for text in (entry if isinstance(entry, (list, tuple)) else [entry])]


def _answered(sample: Mapping[str, Any]) -> Answered:
    arguments = sample["arguments"]
    first = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, Mapping) else arguments[0][0]
    return Answered(
        doc=sample["doc"],
        prompt=str(first),
        responses=tuple(_texts(sample["filtered_resps"])),
        score=float(sample[METRIC]),
    )
