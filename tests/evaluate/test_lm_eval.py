"""Benchmarks on the real lm-eval with a scripted model: its figure is the share of right responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.commands.eval import EvalOptions, Grader, Subject, _scored, run_eval
from harness.core.errors import HarnessError, UsageError
from harness.evaluate import lm_eval as bridge
from harness.evaluate.lm_eval import Generation, benchmark_names, evaluate_benchmark, task_file

pytestmark = pytest.mark.system("python:lm_eval", "python:datasets", "python:math_verify")
HOW = Generation(
    engine="hf", dtype="float32", device="cpu", samples=4, temperature=1.0, max_new_tokens=16, limit=None, seed=0
)


def scripted() -> Any:
    """A model whose j-th response to question i is right if j < i % 5."""
    from lm_eval.api.model import LM

    class Scripted(LM):
        tokenizer_name = "scripted"

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            seen: dict[str, int] = {}
            found = []
            for request in requests:
                text = request.args[0]
                i, j = int(text.split()[1]), seen.get(text, 0)
                seen[text] = j + 1
                found.append(rf"so \boxed{{{i + 1 if j < i % 5 else -1}}}")
            return found

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return "user: " + history[-1]["content"]

        def chat_template(self, template: Any = False) -> str:
            return "user: {}"

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    return Scripted()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k_test.jsonl"
    rows = [{"question": f"{i} plus 1?", "answer": f"add\n#### {i + 1}"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_figure_equals_a_count_over_the_logged_responses(data: Path) -> None:
    grader = Grader("gsm8k", data)
    figure, answered = evaluate_benchmark("gsm8k", data, scripted(), HOW, grader.share)
    assert figure == pytest.approx(sum(i % 5 for i in range(10)) / 40)
    assert len(answered) == 10
    for a in answered:
        i = int(a.doc["question"].split()[0])
        assert a.prompt.startswith(f"user: {i} plus 1?\n\nReason step by step")
        assert sum(rf"\boxed{{{i + 1}}}" in text for text in a.responses) == i % 5
        assert a.score == (i % 5) / 4


def test_outputs_are_kept_counted_again_and_not_made_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Template:
        chat_template = "user: {}"

    monkeypatch.setattr("harness.commands.eval.tokenizer_of", lambda model: Template())
    subject = Subject(name="scripted", place="nowhere")
    monkeypatch.setattr(
        "harness.commands.eval.evaluate_benchmark",
        lambda n, d, _, how, score: evaluate_benchmark(n, d, scripted(), how, score),
    )
    row = _scored(subject, "gsm8k", data, "0" * 64, HOW, tmp_path)
    assert row["lm_eval"] == pytest.approx(row["avg_at_k"]["value"])
    assert row["pass_at_k"]["value"] == 0.8
    assert row["avg_at_k"]["low"] < 0.5 < row["avg_at_k"]["high"]
    monkeypatch.setattr("harness.commands.eval.evaluate_benchmark", lambda *_: pytest.fail("sampled again"))
    assert _scored(subject, "gsm8k", data, "0" * 64, HOW, tmp_path) == row
    file = tmp_path / row["outputs"]
    file.write_text(file.read_text().replace(r"\\boxed{3}", r"\\boxed{-1}"))
    with pytest.raises(HarnessError, match=r"lm-eval says 0\.5"):
        _scored(subject, "gsm8k", data, "0" * 64, HOW, tmp_path)


def test_shipped_task_files_ask_as_the_training_task_does() -> None:
    assert benchmark_names() == ["aime24", "gsm8k", "math-500", "svamp"]
    for name in benchmark_names():
        found = task_file(name)
        assert found["task"] == name
        assert found["metric_list"][0]["metric"] == bridge.METRIC


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"benchmarks": "gsm9k"}, "did you mean gsm8k"),
        ({"benchmarks": "aime24"}, "neither aime24_test.jsonl nor aime24.jsonl"),
        ({"benchmarks": " "}, "none is named"),
        ({"how": Generation(**{**{f: getattr(HOW, f) for f in HOW.__slots__}, "temperature": 0.0})}, "all the same"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(data: Path, changes: dict[str, Any], expected: str) -> None:
    given = {
        "subject": "nowhere", "benchmarks": "gsm8k", "data": data.parent, "checkpoint": "last", "how": HOW,
        "results": data.parent, "as_json": False,
    } | changes  # fmt: skip
    with pytest.raises(UsageError, match=expected):
        run_eval(EvalOptions(**given))
