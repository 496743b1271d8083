"""microscope.json -> a terminal table and one self-contained HTML page: no network, no script, prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from markupsafe import Markup

from harness.report import components, html, style, text

Data = Mapping[str, Any]
LEVELS = (0.25, 0.75, 1.5, 3.0)  # |weight| over the arm's mean, upper ends of the first four of five shades
RATIO_LEVELS = (0.02, 0.1, 0.3)  # |log r|: below the first nothing is shown
CLIP_WORDS = ("", "clipped at the lower bound", "clipped at the upper bound", "clipped by the dual bound")
CHART = (236.0, 92.0)  # width and height of a length chart, user units
SAME = 0.9995  # a cosine that prints as 1.000


def headline(r: Data) -> str:
    """What differs most, in one or two sentences."""
    clipping = [a for a in r["arms"] if a["clip_frac_tokens"] is not None]
    said = []
    if len(clipping) > 1:
        most = max(clipping, key=lambda a: a["clip_frac_tokens"])
        least = min(clipping, key=lambda a: a["clip_frac_tokens"])
        if most["clip_frac_tokens"] > least["clip_frac_tokens"]:
            said.append(
                f"{most['name']} clips {text.fraction(most['clip_frac_tokens'])} of its tokens, "
                f"{least['name']} {text.fraction(least['clip_frac_tokens'])}."
            )
    pairs = [
        (r["cosine"][i][j], r["arms"][i]["name"], r["arms"][j]["name"])
        for i, j in combinations(range(len(r["arms"])), 2)
        if r["cosine"][i][j] is not None
    ]
    if pairs:
        value, a, b = min(pairs)
        if value < SAME:
            said.append(f"The gradients of {a} and {b} are least alike (cosine {text.score(value)}).")
        same = [f"{a} = {b}" for value, a, b in pairs if value >= SAME]
        if same:
            said.append(f"The same direction: {', '.join(same[:3])}{' and others' if len(same) > 3 else ''}.")
    return " ".join(said) or "Nothing to compare: fewer than two algorithms have a gradient on this batch."


def lead(r: Data) -> str:
    """What was looked at."""
    s, b = r["source"], r["batch"]
    return (
        f"Step {s['step']} of {s['run']} (sampled by {s['arm']}, model {s['model']}, task {s['task']}): {b['rows']} "
        f"responses to {b['groups']} prompts, {b['tokens']:,} tokens, mean reward {text.score(b['reward_mean'])}, "
        f"{b['groups_mixed']} prompts with right and wrong answers."
    )


def weights_words(r: Data) -> str:
    """At which weights, and how far the ratios have moved there."""
    w = r["weights"]
    low, middle, high = w["ratio_quantiles"][1:4]
    return (
        f"Weights: {w['text']}. There the token ratio is {low:.3f} to {high:.3f} for 90 % of the tokens (median "
        f"{middle:.3f}), and SD(log s) is {w['sd_log_s']:.2g}. At the weights that sampled, every ratio is 1."
    )


# ---------------------------------------------------------------- terminal


def terminal(r: Data, width: int = 80) -> str:
    """The tables as plain text."""
    lines = [*textwrap.wrap(headline(r), width), "", *textwrap.wrap(lead(r), width)]
    lines += ["", *textwrap.wrap(weights_words(r), width), "", *_arm_lines(r["arms"])]
    lines += ["", "cosine of the whole gradients", *_cosine_lines(r, width)]
    lines += ["", "% of |d loss / d logp| by response length (columns: up to so many tokens)", *_decile_lines(r)]
    for note in _notes(r):
        lines += textwrap.wrap(note, width, initial_indent="* ", subsequent_indent="  ")
    return "\n".join(lines).replace(text.MINUS, "-")


def _notes(r: Data) -> list[str]:
    """What a reader must know, as sentences."""
    notes = [*r["notes"], *(f"{a['name']}: {n}." for a in r["arms"] for n in a["notes"])]
    return notes + [
        f"{a['name']}: by mathematics the same as {a['identical_to']}." for a in r["arms"] if a["identical_to"]
    ]


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def _name(i: int, arm: Data) -> str:
    return f"{_letter(i):2}{_cut(arm['name'], 20):20}"


def _cut(name: str, size: int) -> str:
    return name if len(name) <= size else name[: size - 1] + "~"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _arm_lines(arms: Sequence[Data]) -> list[str]:
    lines = [
        f"{'':22}{'rows':>6}{'with':>6}{'% clipped':>13}{'|grad|':>10}{'effective':>13}{'ratio':>7}",
        f"{'':22}{'kept':>6}{'adv.':>6}{'tokens':>7}{'rows':>6}{'':>10}{'rows':>6}{'tokens':>7}{'ESS':>7}",
    ]
    for i, a in enumerate(arms):
        ess = "n/a" if a["ratio_ess"] is None else f"{a['ratio_ess']:.3f}"
        lines.append(
            f"{_name(i, a)}{a['rows_kept']:6}{a['rows_contributing']:6}{_percent(a['clip_frac_tokens']):>7}"
            f"{_percent(a['clip_frac_rows']):>6}{a['grad_norm']:10.3g}{a['effective_rows']:6.0f}"
            f"{a['effective_tokens']:7.0f}{ess:>7}"
        )
    return lines


def _cosine_lines(r: Data, width: int) -> list[str]:
    arms, lines = r["arms"], []
    step = max(1, (width - 22) // 7)
    for start in range(0, len(arms), step):
        columns = range(start, min(start + step, len(arms)))
        lines.append(" " * 22 + "".join(f"{_letter(j):>7}" for j in columns))
        for i, arm in enumerate(arms):
            cells = (r["cosine"][i][j] for j in columns)
            lines.append(_name(i, arm) + "".join(f"{'-' if c is None else f'{c:.3f}':>7}" for c in cells))
    return lines


def _decile_lines(r: Data) -> list[str]:
    def line(name: str, shares: Sequence[float]) -> str:
        return name + "".join(f"{100 * s:5.0f}" for s in shares)

    head = f"{'':22}" + "".join(f"{high:>5}" for _, high in r["deciles"]["length"])
    arms = [line(_name(i, a), a["decile_share"]) for i, a in enumerate(r["arms"])]
    return [head, *arms, line(f"{'  all tokens alike':22}", r["deciles"]["token_share"])]


# ---------------------------------------------------------------- page


def render(r: Data) -> str:
    """The page."""
    styles = style.assign([(a["name"], a["algorithm"], "outcome") for a in r["arms"]])
    top = max([s for a in r["arms"] for s in a["decile_share"]] + list(r["deciles"]["token_share"]) + [1e-9])
    context = {
        "r": r,
        "headline": headline(r),
        "lead": lead(r),
        "weights": weights_words(r),
        "letters": [_letter(i) for i in range(len(r["arms"]))],
        "cosine": [[_cosine_cell(c) for c in line] for line in r["cosine"]],
        "charts": [
            {"name": a["name"], "svg": Markup(_chart(a, r["deciles"], top, styles[a["name"]]["color"]))}
            for a in r["arms"]
        ],
        "groups": [_group(g, r) for g in r["groups"]],
        "notes": _notes(r),
        "slots": _slots(r["arms"]),
        "css": Markup("\n".join(_css(name) for name in ("style.css", "microscope.css"))),
    }
    return html.environment(autoescape=True).get_template("microscope.html.j2").render(context)


def _css(name: str) -> str:
    return (html.TEMPLATES / name).read_text(encoding="utf-8")


def _cosine_cell(value: float | None) -> dict[str, str]:
    if value is None:
        return {"t": "none", "c": "na"}
    bounds = (0.0, 0.5, 0.8, 0.95, SAME)
    return {"t": text.score(value), "c": f"q{sum(value >= b for b in bounds)}"}


def _slots(arms: Sequence[Data]) -> list[dict[str, Any]]:
    """Slots in which the arms differ, each cell marked where it differs from the first arm."""
    if not arms:
        return []
    matrix = components.matrix({a["name"]: a["resolved"] for a in arms}, arms[0]["name"])
    rows: list[dict[str, Any]] = [row for row in matrix["rows"] if any(c["differs"] for c in row["cells"])]
    return rows


def shade(relative: float, clip: int) -> str:
    """CSS class of a token: u1..u5 made more likely, d1..d5 less likely, z no weight; c1..c3 clipped."""
    size = abs(relative)
    level = 1 + sum(size > limit for limit in LEVELS)
    tone = "z" if size == 0 else f"{'u' if relative < 0 else 'd'}{level}"
    return f"{tone} c{clip}" if clip else tone


def _ratio_shade(ratio: float) -> str:
    level = sum(ratio > 1 + x or ratio < 1 / (1 + x) for x in RATIO_LEVELS)
    return f"{'m' if ratio > 1 else 'l'}{level}" if level else "z"


def _shown(token: str) -> str:
    """A token as it is read: line ends visible, an empty one as a dot."""
    return token.replace("\n", "\u21b5").replace("\t", "\u21e5").strip() or ("\u21b5" if "\n" in token else "\u00b7")


def _group(g: Data, r: Data) -> dict[str, Any]:
    rows = []
    for row in g["rows"]:
        words = [_shown(t) for t in row["tokens"]]
        ratios = [
            {"t": w, "c": _ratio_shade(x), "title": f"ratio {text.number(x)}"}
            for w, x in zip(words, row["ratio"], strict=True)
        ]
        arms = [_arm_line(name, words, v) for name, v in row["arms"].items()]
        rows.append({**row, "ratios": ratios, "lines": arms, "more": row["length"] - len(words)})
    return {**g, "rows": rows}


def _arm_line(name: str, words: Sequence[str], v: Data) -> dict[str, Any]:
    tokens = [
        {"t": w, "c": shade(rel, clip), "title": _title(weight, rel, ratio, clip, adv)}
        for w, rel, weight, ratio, clip, adv in zip(
            words, v["relative"], v["weight"], v["ratio"], v["clip"], v["advantage"], strict=True
        )
    ]
    return {"arm": name, "tokens": tokens, "meta": _meta(v), "out": v["kept"] != "yes"}


def _title(weight: float, relative: float, ratio: float, clip: int, advantage: float) -> str:
    parts = [f"weight {text.number(weight)} ({abs(relative):.2g} x mean)", f"ratio {ratio:.4f}", f"A {advantage:+.2f}"]
    return ", ".join([*parts, CLIP_WORDS[clip]] if clip else parts)


def _meta(v: Data) -> str:
    """What stands under an arm's name."""
    if v["kept"] != "yes":
        return str(v["kept"])
    low, high = min(v["advantage"], default=0.0), max(v["advantage"], default=0.0)
    spread = f"A {low:+.2f}" if f"{low:+.2f}" == f"{high:+.2f}" else f"A {low:+.2f} to {high:+.2f}"
    clipped = sum(1 for c in v["clip"] if c)
    state = "clipped" if clipped and clipped == len(v["clip"]) else f"{clipped} clipped" if clipped else ""
    share = f"{text.fraction(v['share'])} of |w|"
    return ", ".join(x for x in (spread.replace("-", text.MINUS), state or share) if x)


def _chart(arm: Data, deciles: Data, top: float, color: str) -> str:
    """Bars: share of |weight| per bin of response length; lines: share of the tokens there."""
    width, height = CHART
    shares, tokens, ends = arm["decile_share"], deciles["token_share"], deciles["length"]
    if not shares:
        return ""
    step, base = width / len(shares), height - 16
    scale = (base - 14) / top
    parts = [
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(arm["name"])}: share of weight by '
        f'response length, {", ".join(f"{100 * s:.0f} %" for s in shares)}">',
        f'<line x1="0" x2="{width:g}" y1="{base:g}" y2="{base:g}" stroke="var(--line)"/>',
    ]
    for i, (share, token) in enumerate(zip(shares, tokens, strict=True)):
        x, y = i * step, base - share * scale
        label = f"{ends[i][0]} to {ends[i][1]} tokens: {text.fraction(share)} of |w|, {text.fraction(token)} of tokens"
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" height="{share * scale:.1f}" fill="{color}">'
            f"<title>{label}</title></rect>"
        )
        line = base - token * scale
        parts.append(
            f'<line x1="{x + 0.5:.1f}" x2="{x + step - 0.5:.1f}" y1="{line:.1f}" y2="{line:.1f}" '
            'stroke="var(--ink)" stroke-width="1.4"/>'
        )
        if share == max(shares):
            parts.append(_label(x + step / 2, min(y, line) - 3, text.fraction(share), "middle"))
    parts.append(_label(2, height - 4, str(ends[0][0]), "start"))
    parts.append(_label(width / 2, height - 4, "tokens in the response", "middle"))
    parts.append(_label(width - 2, height - 4, str(ends[-1][1]), "end"))
    return "".join([*parts, "</svg>"])


def _label(x: float, y: float, words: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{max(y, 9):.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="9.5" fill="var(--muted)">{words}</text>'
