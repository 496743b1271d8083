"""Learned rewards: a real sequence classifier, and a judge behind a real local HTTP server."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask
from harness.core.registry import build_task
from harness.core.results import EVALS, RESULT, STEPS, read_lines
from harness.core.types import Grade
from harness.models.tiny import VOCABULARY, tiny_tokenizer
from harness.run import execute
from tests.fakes.small_runs import make_folder, run_spec


def graded(task: SingleTurnTask, texts: list[str]) -> list[Grade]:
    item = task.item("train", 0)
    texts = [t.replace("ANSWER", str(item.answer)) for t in texts]
    return task.grade_many([Response(prompt=item, text=t, finish_reason="stop") for t in texts])


# ---------------------------------------------------------------- sequence classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 classifier over the words of `tiny`, with random weights and one output."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "classifier"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=32, max_position_embeddings=64, num_labels=1,
        pad_token_id=VOCABULARY.index("<pad>"),
    )  # fmt: skip
    model = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def learned(classifier: Path, **params: Any) -> SingleTurnTask:
    task = build_task("chain", {"reward_function": f"model:{classifier}", **params})
    assert isinstance(task, SingleTurnTask)
    return task


def test_scores_are_the_classifiers_and_the_verdict_is_the_tasks(classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    task = learned(classifier, reward_batch=2)
    texts = ["# ANSWER", "+1 2 # 3 !", "", "+1 2 +3 5 # 1"]
    grades = graded(task, texts)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(classifier).eval(), tiny_tokenizer()
    item = task.item("train", 0)
    for text, grade in zip(texts, grades, strict=True):
        ids = tokenizer.encode(f"{item.messages[-1]['content']}\n{text.replace('ANSWER', str(item.answer))}")
        with torch.no_grad():
            logit = float(model(input_ids=torch.tensor([ids])).logits)
        assert grade.score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5), "alone or in a padded batch"
        assert grade.components["learned"] == grade.score
    assert grades[0].correct
    assert grades[0].components["true"] == 1.0
    assert len({round(g.score, 6) for g in grades}) == 4
    assert task.info.verdict_held_out
    assert task.info.components == ("learned", "true")


def test_what_is_too_long_has_no_score_and_is_counted(classifier: Path) -> None:
    good, long = graded(learned(classifier), ["# ANSWER", "+1 2 " * 40 + "# ANSWER"])
    assert not good.failed
    assert long.failed
    assert math.isnan(long.score)
    assert math.isnan(long.components["learned"])
    assert long.correct, "the held-out verdict does not depend on the reward"
    assert "longer than the reward model's 64 tokens" in long.why


def test_logits_need_a_range_and_leave_it_as_failures(classifier: Path) -> None:
    wide = graded(learned(classifier, reward_output="logit", reward_range="-100,100"), ["# ANSWER"])[0]
    assert wide.score == pytest.approx(
        math.log(p / (1 - p)) if (p := graded(learned(classifier), ["# ANSWER"])[0].score) else 0
    )
    narrow = graded(learned(classifier, reward_output="logit", reward_range="200,300"), ["# ANSWER"])[0]
    assert narrow.failed
    assert "outside [200, 300]" in narrow.why


def test_the_data_hash_knows_the_reward_model(classifier: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(classifier, copy)
    assert learned(copy).info.data_sha256 == learned(classifier).info.data_sha256
    (copy / "extra.json").write_text("{}")
    assert learned(copy).info.data_sha256 != learned(classifier).info.data_sha256


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"reward_function": "model:./nowhere"}, "no such folder"),
        ({"reward_batch": 0}, "not a number of responses"),
        ({"reward_output": "score"}, "probability or logit"),
        ({"reward_output": "logit"}, "without reward_range"),
        ({"reward_range": "0,2"}, "with reward_range"),
        ({"reward_label": 3}, "the model has 1 labels"),
        ({"reward_seconds": 3}, "does not read it"),
        ({"judge_model": "x"}, "does not read it"),
    ],
)
def test_bad_reward_models(classifier: Path, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_task("chain", {"reward_function": f"model:{classifier}", **params})


def test_a_policy_is_no_reward_model(classifier: Path, tmp_path: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(UsageError, match="Qwen3ForCausalLM"):
        build_task("chain", {"reward_function": f"model:{tmp_path}"})


def test_games_of_several_turns_have_their_own_reward(classifier: Path) -> None:
    with pytest.raises(UsageError, match="several turns"):
        build_task("guess", {"reward_function": f"model:{classifier}"})


def test_a_run_keeps_both_metrics_apart(classifier: Path, tmp_path: Path) -> None:
    """The policy is trained on the classifier; evaluations score the task's verdict; both are in every record."""
    task = {"name": "chain", "params": {"reward_function": f"model:{classifier}"}}
    task["data_sha256"] = build_task("chain", task["params"]).info.data_sha256  # type: ignore[index]
    folder = make_folder(run_spec(steps=2, task=task), tmp_path)
    execute(run_spec(steps=2, task=task), folder)
    result = json.loads((folder / RESULT).read_text())
    assert result["status"] == "completed"
    verifier = next(f for f in result["validity_findings"] if f["check"] == "verifier")
    assert verifier["level"] == "PASS"
    for row in read_lines(folder / STEPS):
        assert row["reward/component/learned"] == pytest.approx(row["reward/mean"], abs=1e-5)
        assert 0 <= row["reward/component/true"] <= 1
        assert row["perf/t_reward"] > 0
    for e in read_lines(folder / EVALS):
        assert e["components"]["true"] == pytest.approx(e["score"])
        assert e["components"]["learned"] == pytest.approx(e["reward_mean"])
        assert e["components"]["learned"] != pytest.approx(e["score"], abs=1e-3)


def test_algorithms_may_not_read_the_held_out_verdict(classifier: Path) -> None:
    from algorithms.arms import build_arm
    from algorithms.checks import refusals_for
    from harness.core.algorithm import override

    info = learned(classifier).info
    for name in ("dapo", "rft"):
        with pytest.raises(UsageError, match="held-out metric"):
            refusals_for(build_arm(name), info)
    with pytest.raises(UsageError, match="selection attribute"):
        refusals_for(override(build_arm("gfpo"), {"selection": {"kind": "attribute", "by": "correct"}}), info)
    for record in (override(build_arm("dapo"), {"admission.metric": "reward"}), build_arm("grpo"), build_arm("gfpo")):
        refusals_for(record, info)


# ---------------------------------------------------------------- judge


class Endpoint(BaseHTTPRequestHandler):
    """Speaks as much of the chat completions protocol as a judge needs; the answer under review says how to reply."""

    models: ClassVar[list[str]] = ["grader-1"]
    seen: ClassVar[list[tuple[dict[str, Any], str | None]]] = []

    def do_GET(self) -> None:
        self._reply({"data": [{"id": m} for m in self.models]} if self.path == "/v1/models" else None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Endpoint.seen.append((body, self.headers.get("Authorization")))
        asked = body["messages"][-1]["content"]
        if self.path != "/v1/chat/completions" or "crash" in asked:
            self._reply(None)
            return
        if "hang" in asked:
            time.sleep(2.5)
        if "garbled" in asked:
            self._reply({"choices": []})
            return
        said = "I will not say." if "refuse" in asked else "Grade: 12" if "too much" in asked else "I give it 7.5"
        self._reply({"choices": [{"message": {"role": "assistant", "content": said}}]})

    def _reply(self, content: Any) -> None:
        text = json.dumps(content or {"error": "no"}).encode()
        self.send_response(200 if content is not None else 500)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        try:
            self.wfile.write(text)
        except OSError:  # the judge's client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def judged(url: str, **params: Any) -> SingleTurnTask:
    task = build_task("chain", {"reward_function": f"judge:{url}", **params})
    assert isinstance(task, SingleTurnTask)
    return task


def test_every_kind_of_reply_is_an_outcome(url: str) -> None:
    task = judged(url, reward_seconds=1)
    start = time.monotonic()
    good, hang, crash, garbled, refuse, much = graded(
        task, ["# ANSWER", "hang", "crash", "garbled", "refuse", "too much"]
    )
    assert time.monotonic() - start < 5
    assert (good.score, good.correct, good.failed) == (0.75, True, False)
    assert good.components == {"learned": 0.75, "true": 1.0}
    for grade, words in ((hang, "within 1 s"), (crash, "answered 500"), (garbled, "cannot be read"),
                         (refuse, "I will not say"), (much, "no grade from 0 to 10")):  # fmt: skip
        assert grade.failed, grade
        assert math.isnan(grade.score)
        assert words in grade.why


def test_the_judge_sees_question_and_answer_and_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret-7")
    task = judged(url, judge_prompt="Q {prompt} A {response}", judge_tokens=4)
    Endpoint.seen.clear()
    item = task.item("train", 0)
    graded(task, ["# {prompt}"])
    [(body, key)] = Endpoint.seen
    assert key == "Bearer secret-7"
    assert body["messages"] == [{"role": "user", "content": f"Q {item.messages[-1]['content']} A # {{prompt}}"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader-1", 0, 4)
    assert "secret-7" not in str(task.info)


def test_requests_run_beside_one_another(url: str) -> None:
    start = time.monotonic()
    grades = graded(judged(url, judge_parallel=8), ["hang"] * 8)
    assert all(g.score == 0.75 for g in grades)
    assert time.monotonic() - start < 8, "one after the other they would take 20 s"


def test_a_judge_that_cannot_work_is_refused_before_the_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for params, words in (
        ({"reward_function": "judge:localhost"}, "not an address"),
        ({"reward_function": "judge:http://127.0.0.1:9/v1"}, "does not list its models"),
        ({"judge_prompt": "no fields"}, "has no {prompt}"),
        ({"judge_parallel": 0}, "whole number"),
        ({"reward_batch": 3}, "does not read it"),
    ):
        with pytest.raises(UsageError) as error:
            build_task("chain", {"reward_function": f"judge:{url}", **params})
        assert words in str(error.value)
    monkeypatch.setattr(Endpoint, "models", ["a", "b"])
    with pytest.raises(UsageError, match="2 models: a, b"):
        judged(url)
    assert judged(url, judge_model="b").info.description.endswith("rewarded by judge b; its own verdict is held out")
