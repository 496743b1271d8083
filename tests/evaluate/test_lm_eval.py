"""Benchmarks on the real lm-eval with a scripted model: its figure is the share of right responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.commands import eval as command
from harness.commands.eval import EvalOptions, run_eval, table
from harness.core.benchmarks import BenchmarkRecord, BenchmarkRow, add_benchmarks, read_benchmarks
from harness.core.errors import HarnessError, UsageError
from harness.core.results import SPEC
from harness.core.spec import TemplateSpec
from harness.evaluate import lm_eval as bridge
from harness.evaluate.grader import Grader
from harness.evaluate.lm_eval import Generation, Prompting, benchmark, benchmark_names, evaluate_benchmark
from harness.models.smollm2 import PACKAGE

pytestmark = pytest.mark.system("python:lm_eval", "python:datasets", "python:math_verify", f"python:{PACKAGE}")
HOW = Generation(engine="hf", dtype="float32", device="cpu", temperature=1.0, max_new_tokens=16, limit=None, seed=0)
MODEL = "smollm2-135m"


def scripted(answer: Any, opening: str = "<|im_start|>assistant\n") -> Any:
    """A model of lm-eval that says `answer(question text, j)` as its j-th response, with a real tokenizer."""
    from lm_eval.api.model import LM

    from harness.core.spec import ModelSpec
    from harness.models.preflight import tokenizer_of

    tokenizer = tokenizer_of(ModelSpec(name=MODEL))

    class Scripted(LM):
        tokenizer_name = "scripted"

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            seen: dict[str, int] = {}
            found = []
            for request in requests:
                text = request.args[0]
                seen[text] = seen.get(text, -1) + 1
                found.append(answer(text.rpartition("user\n")[2], seen[text]))
            return found

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return str(tokenizer.apply_chat_template(history, tokenize=False)) + opening

        def chat_template(self, template: Any = False) -> str:
            return str(tokenizer.chat_template)

        def tok_encode(self, text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    return Scripted()


def sums(question: str, j: int) -> str:
    """Right if j < i % 5, for `i plus 1?`."""
    i = int(question.split()[0])
    return rf"so \boxed{{{i + 1 if j < i % 5 else -1}}}"


def doubling(question: str, j: int) -> str:
    """Solves `Multiply by k.` for k < 5 in every sample, and k = 5 in the first one."""
    k = int(question.split()[2].strip("."))
    right = k < 5 or (k == 5 and j == 0)
    return f"```python\nprint(int(input()) * {k if right else 0})\n```"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k_test.jsonl"
    rows = [{"question": f"{i} plus 1?", "answer": f"add\n#### {i + 1}"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Rated contest problems of ten days."""
    path = tmp_path / "codeforces_test.jsonl"
    rows = [
        {
            "description": f"Multiply by {k}.",
            "tests": [{"input": "2\n", "output": str(2 * k)}, {"input": "3\n", "output": str(3 * k)}],
            "rating": 800 + 100 * k,
            "contest_date": f"2025-01-{k + 1:02}T00:00:00",
        }
        for k in range(2, 12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(folder: Path, **changes: Any) -> EvalOptions:
    given: dict[str, Any] = {
        "subject": MODEL, "benchmarks": "gsm8k", "data": folder, "checkpoint": "last", "samples": 4, "how": HOW,
        "template": None, "task_params": (), "results": folder, "mlflow": False, "as_json": False,
    } | changes  # fmt: skip
    return EvalOptions(**given)


def given_model(monkeypatch: pytest.MonkeyPatch, answer: Any, **how: str) -> list[str]:
    """Has the command use a scripted model; the list grows with every model that is loaded."""
    loaded: list[str] = []

    @contextmanager
    def load(place: str, *_: Any) -> Iterator[Any]:
        loaded.append(place)
        yield scripted(answer, **how)

    monkeypatch.setattr(command, "load_model", load)
    return loaded


def rows_of(folder: Path) -> tuple[BenchmarkRow, ...]:
    [file] = folder.glob("eval/*/eval.json")
    return BenchmarkRecord.model_validate_json(file.read_text()).rows


def test_the_figure_equals_a_count_over_the_logged_responses(data: Path) -> None:
    chosen = benchmark("gsm8k")
    figure, answered = evaluate_benchmark(
        chosen, data, scripted(sums), HOW, Prompting(chat=True), 4, Grader(chosen, data, {}).share
    )
    assert figure == pytest.approx(sum(i % 5 for i in range(10)) / 40)
    assert len(answered) == 10
    for a in answered:
        i = int(a.doc["question"].split()[0])
        assert f"user\n{i} plus 1?\n\nReason step by step" in a.prompt
        assert sum(rf"\boxed{{{i + 1}}}" in text for text in a.responses) == i % 5
        assert a.score == (i % 5) / 4


def test_outputs_are_kept_counted_again_and_not_made_twice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded = data.parent, given_model(monkeypatch, sums)
    assert run_eval(options(folder)) == 0
    [row] = rows_of(folder)
    assert row.lm_eval == pytest.approx(row.avg_at_k.value) == 0.5
    assert row.pass_at_k.value == 0.8
    assert row.avg_at_k.low is not None
    assert row.avg_at_k.low < 0.5
    assert [(q.n, q.correct) for q in row.questions] == [(4, i % 5) for i in range(10)]
    assert (row.role, row.samples, row.cut_off, row.failed) == ("model", 4, 0.0, 0)
    [file] = folder.glob(f"eval/*/{row.outputs}")
    logged = [json.loads(line) for line in file.read_text().splitlines()][1:]
    assert [sum(rf"{{{i + 1}}}" in t for t in line["responses"]) for i, line in enumerate(logged)] == [
        q.correct for q in row.questions
    ]
    assert logged[3]["why"] == ["right"] * 3 + ["wrong"]
    assert run_eval(options(folder)) == 0
    assert (len(loaded), rows_of(folder)) == (1, (row,))
    file.write_text(file.read_text().replace(r"\\boxed{3}", r"\\boxed{-1}"))
    with pytest.raises(HarnessError, match=r"lm-eval says 0\.5"):
        run_eval(options(folder))


def test_a_prompt_that_training_would_write_otherwise_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system text goes the same way; another template in lm-eval is found before anything is kept."""
    given_model(monkeypatch, sums)
    run_eval(options(data.parent, template=TemplateSpec(system="Be brief."), results=data.parent / "system"))
    [row] = rows_of(data.parent / "system")
    assert row.avg_at_k.value == 0.5
    given_model(monkeypatch, sums, opening="<|im_start|>assistant\n<think>\n")
    with pytest.raises(HarnessError, match="not the same"):
        run_eval(options(data.parent))
    assert not list(data.parent.glob("eval/*/*gsm8k-*.jsonl"))


@pytest.mark.system("bwrap")
def test_programs_are_run_rated_and_chosen_by_day(problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = problems.parent
    given_model(monkeypatch, doubling)
    run_eval(options(folder, benchmarks="codeforces", samples=2))
    [row] = rows_of(folder)
    assert row.avg_at_k.value == pytest.approx((3 + 0.5) / 10)
    assert row.pass_at_k.value == pytest.approx(0.4)
    assert row.isolation is not None
    assert row.isolation.startswith("bubblewrap")
    assert row.rating is not None
    assert row.rating.value == pytest.approx(1241, abs=60)  # solves 1000 to 1200, half of 1300
    assert row.rating.low is not None
    assert row.rating.low < 1241 < (row.rating.high or 0)
    assert "rating 1" in table([row])
    run_eval(options(folder, benchmarks="codeforces", results=folder / "w", samples=1,
                     task_params=("since=2025-01-04", "before=2025-01-07")))  # fmt: skip
    [windowed] = rows_of(folder / "w")
    assert (len(windowed.questions), windowed.avg_at_k.value) == (3, 1.0)
    assert windowed.settings["since"] == "2025-01-04"
    with pytest.raises(UsageError, match="none of its 10 problems lies in the days"):
        run_eval(options(folder, benchmarks="codeforces", task_params=("since=2026-01-01",)))


def test_rows_of_a_run_are_kept_by_model_benchmark_and_settings(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_model(monkeypatch, sums)
    run_eval(options(data.parent))
    [row] = rows_of(data.parent)
    run = data.parent / "run"
    run.mkdir()
    assert read_benchmarks(run) == ()
    other = row.model_copy(update={"settings": {**row.settings, "temperature": 0.6}})
    add_benchmarks(run, [row])
    add_benchmarks(run, [row.model_copy(update={"cut_off": 0.5}), other])
    assert [(r.cut_off, r.settings["temperature"]) for r in read_benchmarks(run)] == [(0.5, 1.0), (0.0, 0.6)]


def test_shipped_task_files() -> None:
    assert benchmark_names() == [
        "aime24", "codeforces", "gsm8k", "humaneval", "livecodebench", "math-500", "mbpp", "svamp",
    ]  # fmt: skip
    for name in benchmark_names():
        found = benchmark(name)
        assert found.config["task"] == name
        assert found.config["metric_list"][0]["metric"] == bridge.METRIC
    assert [benchmark(n).samples for n in ("gsm8k", "aime24", "livecodebench")] == [1, 4, 8]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"benchmarks": "gsm9k"}, "did you mean gsm8k"),
        ({"benchmarks": "aime24"}, "neither aime24_test.jsonl nor aime24.jsonl"),
        ({"data": None}, "no --data says"),
        ({"benchmarks": " "}, "none is named"),
        ({"how": replace(HOW, temperature=0.0)}, "all the same"),
        ({"how": replace(HOW, dtype="float8")}, "float32 or bfloat16"),
        ({"how": replace(HOW, max_new_tokens=9000)}, "the longest question has"),
        ({"task_params": ("since=2025-01-01",)}, "none of gsm8k takes one"),
        ({"template": TemplateSpec(system="Be brief.", style="plain")}, "otherwise than training"),
        ({"subject": "tiny"}, "25 words"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    data: Path, changes: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = given_model(monkeypatch, sums)
    with pytest.raises(UsageError, match=expected):
        run_eval(options(data.parent, **changes))
    assert not loaded
    assert not (data.parent / SPEC).exists()
