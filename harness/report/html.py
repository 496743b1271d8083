"""report.json -> one self-contained HTML page: no network, no script, prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from harness.report import figures, tables, text

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
        tables.verdict, tables.efficiency, tables.behaviour, tables.budget, tables.pairs, tables.noise, tables.ranks,
        tables.runs, tables.ledger, tables.config, tables.setup, tables.validity,
    )  # fmt: skip
    return {maker.__name__: maker(report) for maker in makers}


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    arms = {a["name"]: a for a in report["arms"]}
    drawn = {
        "learning": [Markup(figures.learning(report, axis)) for axis in _axes(report)],
        "arms": [{**f, "svg": Markup(f["svg"])} for f in figures.arm_curves(report)],
        "forest": Markup(figures.forest(report) or ""),
        "panels": [{**p, "svg": Markup(p["svg"]) if p["svg"] else ""} for p in figures.panel_figures(report)],
        "swatch": {name: Markup(figures.marker(a["style"])) for name, a in arms.items()},
        "strip": {name: Markup(_strip(a, _span(report))) for name, a in arms.items()},
    }  # fmt: skip
    template = environment(autoescape=True).get_template("report.html.j2")
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return template.render(r=report, tables=views(report), fig=drawn, css=css, arms=arms)


def _axes(report: Mapping[str, Any]) -> tuple[str, ...]:
    drawn = any(data["runs"] for data in report["curves"]["arms"].values())
    return ("sampled_tokens", "step") if drawn else ()


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
