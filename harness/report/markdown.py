"""report.json -> Markdown, for pull requests and terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.report import several_tables
from harness.report.html import environment, views


def escape(value: Any) -> str:
    """Text that cannot end a table cell, start markup or a tag."""
    plain = re.sub(r"([\\`*|])", r"\\\1", " ".join(str(value).split()))
    plain = re.sub(r"(?<!\w)_|_(?!\w)", r"\_", plain)  # inside a word an underscore is no markup
    return plain.replace("<", "&lt;").replace("](", "]\\(")


def table(data: Mapping[str, Any]) -> str:
    """A pipe table; group titles are bold rows, small print follows its number."""
    width = len(data["columns"])
    lines = ["| " + " | ".join(escape(c) for c in data["columns"]) + " |", "|" + " --- |" * width]
    for group in data["groups"]:
        if group["title"]:
            lines.append(f"| **{escape(group['title'])}** |" + " |" * (width - 1))
        for row in group["rows"]:
            lines.append("| " + " | ".join(_cell(c) for c in row) + " |")
    lines += ["", *(f"{escape(note)}  " for note in data["notes"])] if data["notes"] else []
    return "\n".join(lines).rstrip()


def _cell(c: Mapping[str, Any]) -> str:
    return escape(f"{c['t']} {c['s']}".strip())


def render(report: Mapping[str, Any]) -> str:
    """The whole document."""
    found = environment(autoescape=False)
    found.filters.update({"esc": escape, "table": table})
    return found.get_template("report.md.j2").render(r=report, tables=views(report)).rstrip() + "\n"


def render_several(data: Mapping[str, Any]) -> str:
    """Several studies in one document, the whole report of each below the average."""
    found = environment(autoescape=False)
    found.filters.update({"esc": escape, "table": table})
    pages = [re.sub(r"^#", "##", render(r), flags=re.M) for r in data["studies"]]
    text = found.get_template("several.md.j2").render(s=data, tables=several_tables.views(data), pages=pages)
    return text.rstrip() + "\n"
