"""`harness eval`: benchmark scores of a model or of a run and its base model, on lm-evaluation-harness."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, UsageError
from harness.core.ports import Response, SingleTurnTask
from harness.core.registry import build_task
from harness.core.results import SPEC, read_run, write_atomic
from harness.core.spec import ModelSpec, stable_hash
from harness.core.types import Prompt
from harness.evaluate.lm_eval import Answered, Generation, evaluate_benchmark, task_file
from harness.models.preflight import place_of, tokenizer_of
from harness.stats.passes import over_questions, pass_at

EVAL = "eval.json"
PER_RUN = "benchmarks.json"  # in a run's folder: what was scored of it


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The command line as given."""

    subject: str
    benchmarks: str
    data: Path
    checkpoint: str
    how: Generation
    results: Path
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model of the table."""

    name: str
    place: str  # a folder or an id that transformers loads


class Grader:
    """A benchmark's questions with their answers, read and graded as the training task of the same data would."""

    def __init__(self, name: str, data: Path) -> None:
        task = build_task(str(data), {"preset": name})
        assert isinstance(task, SingleTurnTask)
        self._task, self._template = task, str(task_file(name)["doc_to_text"])
        items = [task.item(s, i) for s in ("train", "validation", "test") for i in range(task.info.sizes[s] or 0)]
        self._items = {item.messages[-1]["content"]: item for item in items}

    def prompt(self, doc: Mapping[str, Any]) -> Prompt:
        """The question of an lm-eval document; both render it by the same words."""
        from jinja2 import Template

        return self._items[Template(self._template).render(**doc).strip()]

    def correct(self, questions: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> list[list[bool]]:
        """Whether each response is right, per question."""
        flat = [
            Response(prompt=self.prompt(doc), text=text, finish_reason="stop")
            for doc, texts in questions
            for text in texts
        ]
        grades = iter(self._task.grade_many(flat))
        return [[next(grades).correct for _ in texts] for _, texts in questions]

    def share(self, doc: Mapping[str, Any], texts: Sequence[str]) -> float:
        """Share of right responses: lm-eval's metric."""
        [found] = self.correct([(doc, texts)])
        return sum(found) / len(found)


def run_eval(options: EvalOptions) -> int:
    """Scores what is not scored yet, counts again over the logged responses, prints and writes; the exit code."""
    names = [name.strip() for name in options.benchmarks.split(",") if name.strip()]
    data = {name: _data(name, options.data) for name in names}
    _check(options, names)
    run = Path(options.subject) if (Path(options.subject) / SPEC).is_file() else None
    sha256 = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in data.items()}
    settings = [asdict(options.how), options.checkpoint if run else None, options.subject]
    label = (run.name if run else options.subject.rstrip("/").rsplit("/", 1)[-1]).lower()
    folder = options.results / "eval" / f"{label}-{stable_hash(settings)[:6]}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for subject in _subjects(options, run, folder):
        for name in names:
            print(f"{subject.name} on {name}: {data[name].name}", file=sys.stderr, flush=True)
            rows.append(_scored(subject, name, data[name], sha256[name], options.how, folder))
    record = {"generation": asdict(options.how), "rows": rows}
    write_atomic(folder / EVAL, json.dumps(record, indent=1) + "\n")
    if run is not None:
        write_atomic(run / PER_RUN, json.dumps(record, indent=1) + "\n")
    print(json.dumps({"folder": str(folder), **record}) if options.as_json else table(rows, options.how))
    if not options.as_json:
        print(f"every response: {folder}")
    return 0


def _check(options: EvalOptions, names: Sequence[str]) -> None:
    how = options.how
    if not names:
        raise UsageError("--benchmarks", "none is named", "--benchmarks gsm8k,aime24")
    if how.samples > 1 and how.temperature == 0:
        raise UsageError(
            f"--samples {how.samples} --temperature 0", "greedy responses are all the same", "a temperature above 0"
        )
    for package in ("lm_eval", "datasets", "math_verify", *(("vllm",) if how.engine == "vllm" else ())):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"harness eval --engine {how.engine}", f"{package} is not installed", "pip install '.[eval]'"
            )


def _data(name: str, given: Path) -> Path:
    """The benchmark's file: the one given, or `<name>_test.jsonl` or `<name>.jsonl` in the folder given."""
    task_file(name)
    if given.is_file():
        return given
    found = [given / f"{name}{end}" for end in ("_test.jsonl", ".jsonl") if (given / f"{name}{end}").is_file()]
    if not found:
        raise UsageError(
            f"--data {given}: benchmark {name}", f"neither {name}_test.jsonl nor {name}.jsonl is there",
            "the folder with the benchmark's questions, or one file with --benchmarks of one name",
        )  # fmt: skip
    return found[0]


def _subjects(options: EvalOptions, run: Path | None, folder: Path) -> list[Subject]:
    """The model; for a run its base model, then its checkpoint as an exported folder."""
    if run is None:
        return [Subject(name=options.subject, place=place_of(ModelSpec(name=options.subject)))]
    from harness.commands.export import run_export

    spec = read_run(run).spec
    if spec.model.name == "tiny":
        raise UsageError(f"run {run.name}", "the embedded model speaks 32 words", "a run of a language model")
    target = folder / "model"
    if not target.exists():
        run_export(run, target, options.checkpoint, False)
    base = Subject(name=f"{spec.model.name} (base)", place=place_of(spec.model))
    return [base, Subject(name=f"{run.name} ({options.checkpoint})", place=str(target))]


def _scored(subject: Subject, name: str, data: Path, sha256: str, how: Generation, folder: Path) -> dict[str, Any]:
    """One cell: lm-eval's figure and our count over the responses it logged, which must agree."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in subject.name.rsplit("/", 1)[-1])
    file = folder / f"{slug}-{name}-{sha256[:8]}.jsonl"
    grader = Grader(name, data)
    if not file.exists():
        figure, answered = evaluate_benchmark(name, data, subject.place, how, grader.share)
        write_atomic(file, "".join(json.dumps(line) + "\n" for line in _lines(figure, answered, grader)))
    head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    again = grader.correct([(line["doc"], line["responses"]) for line in lines])
    counts = [(len(found), sum(found)) for found in again]
    estimate = over_questions([c / n for n, c in counts], f"avg@{how.samples}")
    if estimate.value is None or abs(estimate.value - head["lm_eval"]) > 1e-9:
        raise HarnessError(
            f"{file}: lm-eval says {head['lm_eval']:.6f}, the responses it logged give {estimate.value}\n"
            "  why:     a grading failed in one of the two counts, or the file was edited\n"
            "  instead: remove the file and repeat the command"
        )
    passes = over_questions([pass_at(how.samples, n, c) for n, c in counts], f"pass@{how.samples}")
    template = tokenizer_of(ModelSpec(name=subject.place)).chat_template or ""
    return {
        "model": subject.name,
        "benchmark": name,
        "questions": len(counts),
        "lm_eval": head["lm_eval"],
        "avg_at_k": estimate.as_dict(),
        "pass_at_k": passes.as_dict(),
        "cut_or_silent": sum(not text.strip() for line in lines for text in line["responses"]),
        "data_sha256": sha256,
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        "outputs": file.name,
    }


def _lines(figure: float, answered: Sequence[Answered], grader: Grader) -> list[dict[str, Any]]:
    verdicts = grader.correct([(a.doc, a.responses) for a in answered])
    return [
        {"lm_eval": figure},
        *(
            {"id": grader.prompt(a.doc).id, **asdict(a), "correct": found}
            for a, found in zip(answered, verdicts, strict=True)
        ),
    ]


def table(rows: Sequence[Mapping[str, Any]], how: Generation) -> str:
    """Scores with intervals, one line per model and benchmark."""
    lines = [
        f"{'model':32} {'benchmark':10} {'n':>5}  {f'avg@{how.samples}':8} {'95 % interval':18} pass@{how.samples}"
    ]
    for row in rows:
        a, p = row["avg_at_k"], row["pass_at_k"]
        interval = "no interval" if a["low"] is None else f"[{a['low']:.3f}, {a['high']:.3f}]"
        lines.append(
            f"{row['model'][:32]:32} {row['benchmark']:10} {row['questions']:5}  {a['value']:<8.4f} {interval:18} "
            f"{p['value']:.4f}"
        )
    return "\n".join(lines)
