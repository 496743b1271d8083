"""recovery.json -> a terminal table and a Markdown page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from harness.report import text
from harness.report.terminal import ASCII

Data = Mapping[str, Any]
POINTS = {"last_healthy": "last healthy", "half": "half way", "collapsed": "collapsed"}
HEAD = ("start", "remedy", "recovered", "partial", "recurred", "not", "episodes", "95 %", "median steps", "score")


EPISODE_HEAD = ("episode", "run", "event", "onset", "confirmed", "base", "best before", "level", "checkpoints",
                "steps of an attempt", "to last past the onset")  # fmt: skip
INTERVALS = (
    "An interval counts collapse episodes: an episode is recovered where more than half of its attempts are, since "
    "attempts on one episode are not independent. Median steps to recovery: Kaplan-Meier, censored at the end."
)
HOW = (
    "Recovered: three evaluations in a row at the level or above, past the old onset; no collapse active at the end; "
    "lasted as long as demanded past the onset. Recurred: the same collapse again. Partial: the last three evaluations "
    "average at least half way from base to best. The level is the best score before the onset minus max(0.02, its "
    "standard error)."
)


def cells(r: Data) -> list[tuple[str, ...]]:
    """The table: one row per start point and remedy."""
    rows: list[tuple[str, ...]] = []
    for row in r["rows"]:
        v, e, n = row["verdicts"], row["episodes"], row["attempts"]
        open_ = row["unfinished"] + row["failed"]
        rows.append((
            POINTS[row["start"]], r["spec"]["remedies"][row["remedy"]],
            f"{v['recovered']}/{n}" + (f" ({open_} open)" if open_ else ""), str(v["partial"]), str(v["recurred"]),
            str(v["not recovered"]), f"{e['k']}/{e['n']}",
            "n/a" if e["low"] is None else f"{e['low']:.2f} to {e['high']:.2f}",
            "n/a" if row["median_steps"] is None else f"{row['median_steps']:.0f}", text.score(row["score"]),
        ))  # fmt: skip
    return rows


def terminal(r: Data, width: int = 100) -> str:
    """Answer and table."""
    lines = [line for sentence in r["answer"] for line in textwrap.wrap(sentence, width)]
    rows = [HEAD, *cells(r)]
    sizes = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    drawn = ["  ".join(x.ljust(s) for x, s in zip(row, sizes, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", drawn[0], "-" * min(width, len(drawn[0]) + 8), *drawn[1:]]).translate(ASCII)


def episode_cells(r: Data) -> list[tuple[str, ...]]:
    """A row per collapse episode."""
    return [
        (str(i), _run(e), e["type"], str(e["onset"]), str(e["confirm"]), text.score(e["base"]), text.score(e["best"]),
         text.score(e["best"] - e["tolerance"]), ", ".join(f"{POINTS[k]} {v}" for k, v in e["checkpoints"].items()),
         str(e["steps"]), str(e["survive"]))
        for i, e in enumerate(r["spec"]["episodes"])
    ]  # fmt: skip


def attempt_cells(r: Data) -> list[tuple[str, ...]]:
    """A row per attempt, those without a verdict too."""
    return [
        (str(a["episode"]), POINTS[a["start"]], r["spec"]["remedies"][a["remedy"]], str(a["seed"]),
         a["verdict"] or ("failed" if a["failed"] else "open"), text.score(a["score"]), a["why"], a["run_id"])
        for a in r["attempts"]
    ]  # fmt: skip


def markdown(r: Data) -> str:
    """The page: answer, table, episodes, how it is judged, every attempt."""
    spec = r["spec"]
    p = r["provenance"]
    forced = [f"* Episode {i}: {', '.join(e['in_force'])}." for i, e in enumerate(spec["episodes"]) if e["in_force"]]
    skipped = [f"* Episode {s['episode']}: no {spec['remedies'][s['remedy']]}: {s['why']}." for s in spec["skipped"]]
    return "\n".join([
        f"# Recovery: {spec['name']}", "", *[f"{s}\n" for s in r["answer"]],
        *_table(HEAD, cells(r)), "", INTERVALS, "",
        "## Episodes", "", *_table(EPISODE_HEAD, episode_cells(r)), "",
        *forced, *skipped, "", HOW, "",
        "## Attempts", "",
        *_table(("episode", "start", "remedy", "seed", "verdict", "score", "why", "run"), attempt_cells(r)), "",
        f"harness {p['harness_version']}, numerics version {p['numerics_version']}, Python {p['python']}, {p['cpu']}, "
        f"{p['started']}.", "",
    ])  # fmt: skip


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    body = [f"| {' | '.join(_cell(c) for c in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]


def _run(e: Data) -> str:
    return str(e["run"]).rstrip("/").rsplit("/", 1)[-1]


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")
