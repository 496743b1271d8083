"""The second count of a benchmark: every number from the logged responses, none from lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.core.benchmarks import BenchmarkRow, Scored
from harness.core.errors import HarnessError
from harness.core.results import QuestionScore, write_atomic
from harness.core.types import Grade
from harness.evaluate.grader import Grader, rating_of
from harness.evaluate.lm_eval import Answered
from harness.stats.estimate import Estimate
from harness.stats.passes import over_questions, pass_at
from harness.stats.rating import rating

SAME = 1e-9  # both counts are sums of the same few thousand shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A file of responses: lm-eval's figure, then one line per question."""

    figure: float
    lines: tuple[Mapping[str, Any], ...]


def write_log(file: Path, figure: float, answered: Sequence[Answered], grader: Grader) -> None:
    """Every response with what was read out of it and why it counts."""
    grades = grader.grades([(a.doc, a.responses) for a in answered])
    lines: list[dict[str, Any]] = [{"lm_eval": figure}]
    for a, found in zip(answered, grades, strict=True):
        verdicts = {
            "correct": [g.correct for g in found],
            "extracted": [g.extracted for g in found],
            "why": [g.why for g in found],
        }
        lines.append({"id": grader.prompt(a.doc).id, **asdict(a), **verdicts})
    write_atomic(file, "".join(json.dumps(line) + "\n" for line in lines))


def read_log(file: Path) -> Logged:
    """The responses of a file."""
    head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return Logged(figure=head["lm_eval"], lines=tuple(lines))


def counted(
    file: Path, log: Logged, grader: Grader, samples: int, tokens_of: Callable[[str], Sequence[int]], limit: int,
    facts: Mapping[str, Any],
) -> BenchmarkRow:  # fmt: skip
    """The row of a table; refused where lm-eval's figure is another one. `facts` are the fields that are not counted.

    `limit`: response tokens; a response that has as many again when its text is encoded was cut off.
    """
    grades = grader.grades([(line["doc"], line["responses"]) for line in log.lines])
    counts = [(len(found), sum(g.correct for g in found)) for found in grades]
    average = over_questions([c / n for n, c in counts], f"avg@{samples}")
    if average.value is None or abs(average.value - log.figure) > SAME:
        raise HarnessError(
            f"{file}: lm-eval says {log.figure:.6f}, the responses it logged give {average.value}\n"
            "  why:     a grading failed in one of the two counts, or the file was edited\n"
            "  instead: remove the file and repeat the command"
        )
    passes = over_questions([pass_at(samples, n, c) for n, c in counts], f"pass@{samples}")
    texts = [text for line in log.lines for text in line["responses"]]
    return BenchmarkRow(
        questions=tuple(
            QuestionScore(id=line["id"], n=n, correct=c) for line, (n, c) in zip(log.lines, counts, strict=True)
        ),
        samples=samples,
        lm_eval=log.figure,
        avg_at_k=_scored(average),
        pass_at_k=_scored(passes),
        rating=_rating(log, grader, grades),
        cut_off=sum(len(tokens_of(text)) >= limit - 1 for text in texts) / len(texts),  # an end token is no text
        failed=sum(g.failed for found in grades for g in found),
        data_sha256=grader.sha256,
        isolation=grader.task.info.isolation,
        outputs=file.name,
        **facts,
    )


def _scored(estimate: Estimate) -> Scored:
    return Scored(**estimate.as_dict())


def _rating(log: Logged, grader: Grader, grades: Sequence[Sequence[Grade]]) -> Scored | None:
    """Over the problems that have a rating."""
    rated = [
        (difficulty, sum(g.correct for g in found) / len(found))
        for line, found in zip(log.lines, grades, strict=True)
        if (difficulty := rating_of(grader.prompt(line["doc"]))) is not None
    ]
    return _scored(rating([r for r, _ in rated], [y for _, y in rated])) if rated else None
