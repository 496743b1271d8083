"""Benchmarks through EleutherAI's lm-evaluation-harness: our task files, local data, k samples per question."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.core.errors import UsageError, near

METRIC = "avg_at_k"
_CPU_ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How responses are made; the same for every model of a table."""

    engine: Literal["hf", "vllm"]
    dtype: str
    device: str
    temperature: float  # 0: greedy
    max_new_tokens: int
    limit: int | None  # first questions only
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """How a question becomes a prompt; the same as in training."""

    chat: bool  # by the tokenizer's chat template
    system: str | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A task file that ships with the project."""

    name: str
    config: Mapping[str, Any]
    task: str  # the task of ours that reads and grades: a data preset, `code`, or another by name
    samples: int  # k where the command does not say

    @property
    def sandboxed(self) -> bool:
        """Whether responses are programs, which are run."""
        return self.task in ("code", "humaneval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question as lm-eval logged it."""

    doc: Mapping[str, Any]
    prompt: str  # after the chat template
    responses: tuple[str, ...]
    score: float  # lm-eval's metric for it


Score = Callable[[Mapping[str, Any], Sequence[str]], float]  # (document, its responses) -> share of right ones


def benchmark_names() -> list[str]:
    """Benchmarks whose task files ship with the project."""
    folder = files("harness.evaluate") / "benchmarks"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def benchmark(name: str) -> Benchmark:
    """A benchmark by its name."""
    if name not in benchmark_names():
        raise UsageError(
            f"benchmark {name!r}", "no task file of that name",
            f"{near(name, benchmark_names())} (there are: {', '.join(benchmark_names())})",
        )  # fmt: skip
    text = (files("harness.evaluate") / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    ours = config["metadata"]
    return Benchmark(name=name, config=config, task=ours["graded_by"], samples=ours["samples"])


def evaluate_benchmark(
    chosen: Benchmark, data: Path, model: Any, how: Generation, prompting: Prompting, samples: int, score: Score
) -> tuple[float, list[Answered]]:
    """(lm-eval's own figure, every question with its responses) for a model of `load_model`."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[ConfigurableTask(config=_configured(chosen.config, data, how, prompting, samples, score))],
        task_manager=TaskManager(include_defaults=False),  # reading its thousands of files takes a minute of CPU
        limit=how.limit,
        bootstrap_iters=0,
        apply_chat_template=prompting.chat,
        system_instruction=prompting.system,
        log_samples=True,
        random_seed=how.seed,
        numpy_random_seed=how.seed,
        torch_random_seed=how.seed,
    )
    assert found is not None
    figure = float(found["results"][chosen.name][f"{METRIC},all"])
    logged = sorted(found["samples"][chosen.name], key=lambda s: int(s["doc_id"]))
    return figure, [_answered(sample) for sample in logged]


def _configured(
    config: Mapping[str, Any], data: Path, how: Generation, prompting: Prompting, samples: int, score: Score
) -> dict[str, Any]:
    """The task file with the data's path, the generation settings and the grader."""
    drawn = {"do_sample": True, "temperature": how.temperature, "top_p": 1.0, "top_k": 0}  # from the policy itself
    return {
        **config,
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "process_results": lambda doc, results: {METRIC: score(doc, _texts(results))},
        "repeats": samples,
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": samples}]}],
        "generation_kwargs": {
            "until": list(prompting.stop),
            "max_gen_toks": how.max_new_tokens,
            **(drawn if how.temperature > 0 else {"do_sample": False, "temperature": 0.0}),
        },
    }


@contextmanager
def load_model(place: str, how: Generation, prompting: Prompting, context: int) -> Iterator[Any]:
    """lm-eval's model of a folder or id, for prompts and responses of `context` tokens together."""
    from lm_eval.api.registry import get_model

    shared: dict[str, Any] = {"pretrained": place, "dtype": how.dtype}
    if prompting.chat:
        shared["add_bos_token"] = False  # the template has written what stands in front
    if how.engine == "hf":
        yield get_model("hf")(**shared, device=how.device, batch_size=16, max_length=context)
        return
    cpu = how.device == "cpu"
    if cpu:
        for variable, value in _CPU_ENGINE.items():
            os.environ.setdefault(variable, value)
    with _vllm_by_its_name():
        made = get_model("vllm")(
            **shared, batch_size="auto", max_model_len=context, seed=how.seed, enforce_eager=cpu,
            enable_prefix_caching=True, disable_log_stats=True, **({"block_size": 32} if cpu else {}),
        )  # fmt: skip
    try:
        yield made
    finally:
        made.model.llm_engine.engine_core.shutdown()
        del made
        gc.collect()


@contextmanager
def _vllm_by_its_name() -> Iterator[None]:
    """lm-eval asks for the version of a package `vllm`; its build for CPUs is the package `vllm-cpu`.

    vLLM itself reads its platform out of the version: 0.32.0+cpu.
    """
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return real(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return f"{real('vllm-cpu').partition('+')[0]}+cpu"

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = real


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
