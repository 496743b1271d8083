"""How fast responses are graded: math-verify in worker processes, on numbers and on LaTeX; programs in the sandbox."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.core.ports import Response, SingleTurnTask
from harness.core.registry import build_task
from tasks.sandbox import Limits, available, run
from tasks.workers import num_workers

SIBLINGS = 8  # responses per question, as in a rollout
QUESTIONS = 64
PROGRAMS = 100
FORMS = (
    r"\frac{%d}{7}", r"x^2+%dx+2", r"(%d,\frac{\pi}{2})", r"\sqrt{%d}+1", r"[%d,\infty)",
    r"\begin{pmatrix}%d&2\\3&4\end{pmatrix}", r"%d\pi r", r"\{1,2,%d\}", r"-\frac{%d\sqrt{5}}{7}", r"2^{%d}",
)  # fmt: skip
TARGETS = {"numbers": 1000, "latex": 300}  # responses per second on two processors


def run_grading(rounds: int) -> dict[str, dict[str, float]]:
    """Median responses per second by kind, over `rounds` rollouts of new questions each."""
    found = {kind: _measured(kind, rounds) for kind in TARGETS}
    return found | ({"programs": _programs(rounds)} if available().kind == "bubblewrap" else {})


def _programs(rounds: int) -> dict[str, float]:
    """Sandboxed runs of a small program per second."""

    def once(_: int) -> bool:
        return run({"main.py": "print(int(input()) * 2)"}, "21", Limits(wall_s=60.0), "bubblewrap").stdout == "42\n"

    rates = []
    with ThreadPoolExecutor(num_workers()) as threads:
        for _ in range(rounds):
            start = time.perf_counter()
            assert all(threads.map(once, range(PROGRAMS))), "a benchmark program failed"
            rates.append(PROGRAMS / (time.perf_counter() - start))
    return {"per_s": statistics.median(rates), "target_per_s": 20.0, "workers": float(num_workers())}


def _measured(kind: str, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.jsonl"
        size = QUESTIONS * (rounds + 1)
        rows = [{"question": f"Question {i}?", "answer": _answer(kind, i)} for i in range(size)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = build_task(str(file), {"match": "math", "test_file": _one_row(Path(folder))})
        assert isinstance(task, SingleTurnTask)
        batches = [list(_responses(task, start)) for start in range(0, _sizes(task) - QUESTIONS, QUESTIONS)]
        task.grade_many(batches[0])  # workers start
        rates = [_rate(task, batch) for batch in batches[1 : rounds + 1]]
    return {"per_s": statistics.median(rates), "target_per_s": float(TARGETS[kind]), "workers": float(num_workers())}


def _sizes(task: SingleTurnTask) -> int:
    return int(task.info.sizes["train"] or 0)


def _one_row(folder: Path) -> str:
    path = folder / "test.jsonl"
    path.write_text('{"question": "another", "answer": "1"}\n', encoding="utf-8")
    return str(path)


def _answer(kind: str, i: int) -> str:
    return str(7 * i + 3) if kind == "numbers" else FORMS[i % len(FORMS)] % (i + 2)


def _responses(task: SingleTurnTask, first: int) -> Iterator[Response]:
    """Worked answers as a model writes them: half of the siblings right, half of them another question's answer."""
    for index in range(first, first + QUESTIONS):
        prompt, other = task.item("train", index), task.item("train", index - 1 if index else 1)
        for sibling in range(SIBLINGS):
            answer = (prompt if sibling % 2 else other).answer
            steps = " ".join(f"Step {n}: {n + sibling} + {n} = {2 * n + sibling}, so we carry on." for n in range(12))
            yield Response(
                prompt=prompt, text=f"{steps}\nThe final answer is $\\boxed{{{answer}}}$.", finish_reason="stop"
            )


def _rate(task: SingleTurnTask, batch: Sequence[Response]) -> float:
    start = time.perf_counter()
    grades = task.grade_many(batch)
    seconds = time.perf_counter() - start
    wrong = sum(g.correct != (i % SIBLINGS % 2 == 1) for i, g in enumerate(grades))
    assert wrong <= len(batch) // 100, f"{wrong} of {len(batch)} benchmark responses misjudged"
    return len(batch) / seconds


def lines(found: dict[str, dict[str, float]]) -> str:
    """The table that `harness bench --only grading` prints."""
    head = f"{'grading':10} {'responses/s':>12} {'target':>8} {'workers':>8}"
    rows = [
        f"{kind:10} {row['per_s']:12,.0f} {row['target_per_s']:8,.0f} {row['workers']:8.0f}"
        for kind, row in found.items()
    ]
    return "\n".join([head, *rows])
