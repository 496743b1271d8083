"""report.json -> one self-contained HTML page: no network, no script, prints."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from harness.report import benchmarks, evidence_tables, figures, several_tables, tables, text
from harness.report.declaration import sentence
from harness.report.plots import evidence_plots, length_plots
from harness.report.rewards import reward_parts
from harness.report.routing import heat_map, routing

SHORT = {"sampled_tokens": "sampled tokens", "step": "steps", "trained_tokens": "trained tokens",
         "wallclock_s": "training time"}  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"


def environment(*, autoescape: bool) -> jinja2.Environment:
    """Undefined names are errors; whatever came from a model is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=autoescape, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters.update(text.FORMATS | {"exact": text.exact, "p_value": text.p_value, "vi": text.value_interval})
    return found


def views(report: Mapping[str, Any]) -> dict[str, Any]:
    """All tables by name."""
    makers = (
        tables.verdict, evidence_tables.use_when, evidence_tables.aggregates, evidence_tables.tests,
        tables.efficiency, tables.behaviour, reward_parts, routing, tables.budget, tables.pairs, tables.noise,
        tables.ranks,
        evidence_tables.phases, evidence_tables.tuned,
        tables.runs, tables.ledger, tables.config, tables.setup, tables.validity, benchmarks.benchmarks,
        evidence_tables.lengths,
    )  # fmt: skip
    return {maker.__name__: maker(report) for maker in makers}


def render(report: Mapping[str, Any], refresh: int | None = None) -> str:
    """The page; with `refresh` it reloads itself after so many seconds."""
    drawn = {
        "axes": [_axis(report, axis) for axis in axes_of(report)],
        "evidence": [{**p, "svg": Markup(figures.svg(p["plot"]))} for p in evidence_plots(report)],
        "lengths": [{**p, "svg": Markup(figures.svg(p["plot"]))} for p in length_plots(report)],
        "arms": [{**f, "svg": Markup(f["svg"])} for f in figures.arm_curves(report)],
        "routing": Markup(figures.svg(heat)) if (heat := heat_map(report)) else "",
        "forest": Markup(figures.svg(forest)) if (forest := figures.forest(report)) else "",
        "panels": [{**p, "svg": Markup(p["svg"]) if p["svg"] else ""} for p in figures.panel_figures(report)],
        **_marks(report),
    }
    arms = {a["name"]: a for a in report["arms"]}
    title, declared = f"{report['study']['name']}: comparison report", sentence(report["declaration"])
    found = views(report)
    return rendered("report.html.j2", title, refresh, r=report, tables=found, fig=drawn, arms=arms, declared=declared)


def render_several(data: Mapping[str, Any]) -> str:
    """One page for several studies."""
    sections = [_section(name, report) for name, report in zip(data["names"], data["studies"], strict=True)]
    found = several_tables.views(data)
    return rendered("several.html.j2", f"{', '.join(data['names'])}: comparison report", None,
                 s=data, tables=found, sections=sections, fig={})  # fmt: skip


def _section(name: str, report: Mapping[str, Any]) -> Markup:
    """What page one of a study shows, with ids that are its own."""
    plots = {"learning": figures.learning(report, "sampled_tokens") if axes_of(report) else None,
             "forest": figures.forest(report)}  # fmt: skip
    drawn = {k: Markup(figures.svg(replace(p, name=f"{name}-{p.name}"))) if p else "" for k, p in plots.items()}
    template = environment(autoescape=True).get_template("study.html.j2")
    return Markup(template.render(r=report, tables=views(report), fig={**drawn, **_marks(report)},
                                  declared=sentence(report["declaration"])))  # fmt: skip


def _marks(report: Mapping[str, Any]) -> dict[str, dict[str, Markup]]:
    """Swatch and strip of every arm."""
    return {
        "swatch": {a["name"]: Markup(figures.marker(a["style"])) for a in report["arms"]},
        "strip": {a["name"]: Markup(_strip(a, _span(report))) for a in report["arms"]},
    }


def rendered(name: str, title: str, refresh: int | None = None, **data: Any) -> str:
    """A template that extends the page, with its style and its script inside."""
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment(autoescape=True)
        .get_template(name)
        .render(title=title, css=css, script=Markup(script), script_sha256=allowed, refresh=refresh, **data)
    )


def axes_of(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Budget axes on which there are learning curves."""
    lines = [line for data in report["curves"]["arms"].values() for line in data["runs"]]
    return tuple(axis for axis in figures.AXES if lines and all(line[axis] for line in lines))


def _axis(report: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """A learning figure with the order of the arms at the largest budget they share."""
    ranking = report["axes"].get(axis, {"order": [], "flips": [], "budget": None})
    flipped = {name for pair in ranking["flips"] for name in pair}
    form = text.seconds if axis == "wallclock_s" else text.count
    return {
        "key": axis, "name": SHORT[axis], "svg": Markup(figures.svg(figures.learning(report, axis))),
        "order": [{**row, "flipped": row["arm"] in flipped} for row in ranking["order"]],
        "budget": form(ranking["budget"]), "flips": ranking["flips"],
    }  # fmt: skip


def _strip(arm: Mapping[str, Any], span: tuple[float, float]) -> str:
    return figures.strip(arm["seeds"], arm["score"], arm["style"]["color"], span)


def _span(report: Mapping[str, Any]) -> tuple[float, float]:
    """Common scale of the strips: all seeds and interval ends, in [0, 1], a little air around."""
    ends = [s["score"] for a in report["arms"] for s in a["seeds"]]
    ends += [v for a in report["arms"] for v in (a["score"]["low"], a["score"]["high"]) if v is not None]
    if not ends:
        return 0.0, 1.0
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    return (low, high) if high > low else (0.0, 1.0)
