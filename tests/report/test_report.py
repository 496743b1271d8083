"""The data of the report, and that every format says the same."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.results import SampleRecord, append_line, read_study, to_json
from harness.core.spec import ArmSpec, Budget
from harness.report import build_report, terminal_table, text, write_report
from harness.report.write import render_again
from tests.fakes.run_folders import write_fake_study


class Text(HTMLParser):
    """Tables as rows of cell texts, all text, and the tags seen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        if tag == "small" and self._cell:
            self.rows[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def parse(path: Path) -> Text:
    found = Text()
    found.feed(path.read_text())
    return found


def arm(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(a for a in report["arms"] if a["name"] == name)


def test_every_run_is_accounted_for(report: dict[str, Any]) -> None:
    tally = report["tally"]
    assert tally["planned"] == 24
    assert (tally["collapsed"], tally["infra_failed"], tally["unfinished"], tally["missing"]) == (1, 1, 1, 1)
    assert len(report["runs"]) + len(report["missing"]) == 24
    assert arm(report, "PPO")["n"] == 2


def test_the_collapsed_run_keeps_its_real_score(report: dict[str, Any]) -> None:
    gspo = arm(report, "GSPO")
    hit = next(s for s in gspo["seeds"] if s["status"] == "collapsed")
    assert hit["score"] < 0.2
    assert gspo["score"]["value"] == pytest.approx(sum(s["score"] for s in gspo["seeds"]) / 3)
    assert gspo["score"]["low"] is None, "a t interval would under-cover"
    assert gspo["score_survivors"]["n"] == 2
    assert (gspo["collapse"]["k"], gspo["collapse"]["n"]) == (1, 3)


def test_ranking_stays_inside_a_bracket(report: dict[str, Any]) -> None:
    outcome, dense, control = report["groups"]
    assert outcome["arms"][0] == "DAPO"
    assert set(outcome["arms"]) == {"PPO", "GRPO", "DAPO", "GSPO"}
    assert dense["arms"] == ["GSPO-token process"]
    assert not control["ranked"]
    assert {(c["a"], c["b"]) for c in report["comparisons"]} == {
        ("DAPO", "GRPO"), ("PPO", "GRPO"), ("GSPO", "GRPO"), ("Random reward", "GRPO"),
    }  # fmt: skip


def test_numbers_travel_with_estimator_n_interval_and_runs(report: dict[str, Any]) -> None:
    ids = {r["id"] for r in report["runs"]}
    for row in report["arms"]:
        for key in ("score", "gain", "length", "entropy_end", "clip_tok_any", "wallclock_s"):
            estimate = row[key]
            assert estimate["estimator"]
            assert estimate["n"] == len(estimate["runs"])
            assert set(estimate["runs"]) <= ids
            assert estimate["low"] is not None or estimate["note"], (row["name"], key)
    for c in report["comparisons"]:
        assert c["test"]
        assert c["why"]
        assert len(c["runs"]) == 2 * c["n"]


def test_the_answer_says_what_the_comparison_says(report: dict[str, Any]) -> None:
    best = next(c for c in report["comparisons"] if c["a"] == "DAPO")
    assert best["label"] == "A>B"
    assert report["answer"]["status"] == "decided"
    assert report["answer"]["headline"].startswith("At 122,880 sampled tokens on chain, DAPO beats GRPO by ")
    assert text.value_interval(best, "signed") in report["answer"]["headline"]
    assert not report["answer"]["uncontrolled"]


def test_html_and_markdown_show_the_numbers_of_the_json(report: dict[str, Any], files: dict[str, Path]) -> None:
    rows = parse(files["html"]).rows
    markdown = [
        [html.unescape(c).strip().replace("\\", "") for c in ln.strip("| ").split(" | ")]
        for ln in files["md"].read_text().splitlines()
    ]
    pairs = {c["a"]: c for c in report["comparisons"]}
    for a in report["arms"]:
        for table in (rows, markdown):
            row = next(r for r in table if r and r[0].startswith(a["name"]) and len(r) == 13)
            assert row[1].split()[0] == text.score(a["score"]["value"])
            shown = [float(s.rstrip("†")) for s in row[2].split()]
            assert shown == pytest.approx([s["score"] for s in a["seeds"]], abs=5e-4)
            if a["name"] in pairs:
                c = pairs[a["name"]]
                assert row[3].split()[0] == text.signed(c["value"])
                if c["low"] is not None:
                    assert text.interval(c, "signed") in row[3]
                assert row[4].startswith(text.label_words(c))
                assert row[5].split()[0] == text.number(c["improvement"]["value"])
            assert row[6].split()[0] == f"{a['collapse']['k']}/{a['collapse']['n']}"
            assert row[7] == f"{a['statuses']['no_learning']}/{a['n']}"
            tokens = report["thresholds"][-1]["arms"][a["name"]]["sampled_tokens"]
            assert row[8].startswith(text.threshold_words(tokens))
            for cell, key, kind in ((row[9], "length", "number"), (row[10], "memory_mib", "memory"),
                                    (row[11], "seconds_per_million", "number")):  # fmt: skip
                assert cell.startswith(text.FORMATS[kind](a[key]["value"]))
                assert text.interval(a[key], kind) in cell.replace("\u00a0", " ")
            assert row[12] == str(a["n"])


def test_the_time_per_million_tokens_is_that_of_the_runs(report: dict[str, Any]) -> None:
    for a in report["arms"]:
        each = [1e6 * r["wallclock_s"] / r["sampled_tokens"] for r in report["runs"]
                if r["arm"] == a["name"] and r["counted"]]  # fmt: skip
        assert a["seconds_per_million"]["value"] == pytest.approx(sum(each) / len(each))
        assert a["seconds_per_million"]["n"] == len(each)
    assert report["study"]["clock"] == "CPU-s"


def test_a_report_of_the_version_before_is_rendered_as_one_of_today(report: dict[str, Any], tmp_path: Path) -> None:
    old = json.loads(json.dumps(report))
    for part in (*old["arms"], *old["runs"]):
        del part["seconds_per_million"]
        part.pop("absent", None)
    for panel in old["panels"]:
        del panel["limit"]
    del old["study"]["clock"], old["ratio_by_length"], old["trajectories"]
    old["schema_version"] = 2
    (tmp_path / "old.json").write_text(json.dumps(old))
    paths = render_again(tmp_path / "old.json", tmp_path / "new")
    assert json.loads(paths["json"].read_text()) == report
    del old["tally"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(UsageError, match="no 'tally' in it"):
        render_again(tmp_path / "old.json", tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_csvs_hold_every_run_comparison_and_evaluation(
    report: dict[str, Any], files: dict[str, Path], study: Path
) -> None:
    runs, comparisons, evals = (list(csv.DictReader(files[k].open())) for k in ("runs", "comparisons", "evals"))
    assert [r["id"] for r in runs] == [r["id"] for r in report["runs"]]
    assert len(comparisons) == len(report["comparisons"]) + len(report["all_pairs"])
    assert float(comparisons[0]["value"]) == report["comparisons"][0]["value"]
    assert len(evals) == sum(len(r.evals) for r in read_study(study).runs)


def test_the_page_is_offline_small_and_runs_no_script_but_its_own(files: dict[str, Path]) -> None:
    source, page = files["html"].read_text(), parse(files["html"])
    assert len(source) < 2_000_000
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    script = re.findall(r"<script>(.*?)</script>", source, flags=re.S)
    assert len(script) == 1, "the one that sorts tables"
    assert len(script[0]) < 5000
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "action"):
            value = attrs.get(key)
            assert value is None or value.startswith("#"), (tag, key, value)
    assert not re.search(r"url\((?!#)|@import", source)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids)), "ids of inline figures must not collide"
    assert "prefers-color-scheme: dark" in source


def test_rendering_again_gives_the_same_bytes(study: Path, files: dict[str, Path], tmp_path: Path) -> None:
    again = write_report(study, tmp_path)
    for kind, path in files.items():
        pairs = [(path, again[kind])] if path.is_file() else [(p, again[kind] / p.name) for p in path.iterdir()]
        assert pairs
        for first, second in pairs:
            assert second.read_bytes() == first.read_bytes(), first.name


def test_the_report_names_what_it_does_not_show(report: dict[str, Any], files: dict[str, Path]) -> None:
    page = parse(files["html"]).text
    for words in ("What this does not show", "not evidence about large models", "Provenance", "harness report"):
        assert words in page
    assert any(c.startswith("Incomplete: 2 of 24") for c in report["caveats"])
    for run in report["runs"]:
        assert run["id"] in page
        assert run["id"] in files["md"].read_text()
    assert "out of memory" in page


def test_untrusted_text_is_shown_as_text(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO"], [0], 10)
    attack = "</pre><script>alert(1)</script> | `x` <img src=x onerror=y>"
    folder = read_study(tmp_path / "s").runs[0].path
    record = SampleRecord(
        step=10, prompt_id="<b>id</b>", sample=0, prompt=attack, response=attack, tokens=3, reward=0.0, correct=False,
        extracted=attack, why=attack, advantage=None, split="test",
    )  # fmt: skip
    append_line(folder / "samples.jsonl", to_json(record))
    files = write_report(tmp_path / "s", draw=False)
    page = parse(files["html"])
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script"], "the page's own, at its end"
    assert attack in page.text
    assert "<script>" not in files["md"].read_text()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_table_fits(report: dict[str, Any], width: int) -> None:
    shown = terminal_table(report, width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert shown.isascii()
    assert all(a["name"] in shown for a in report["arms"])
    assert text.score(arm(report, "DAPO")["score"]["value"]) in shown


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("No run has finished", {"unfinished": [("GRPO", 0), ("GSPO", 0)]}),
        ("No run has finished", {"missing": [("GRPO", 0), ("GSPO", 0)]}),
        ("No run has finished", {"failed": [("GRPO", 0), ("GSPO", 0)]}),
        ("undecided", {}),
        ("GSPO scores", {"missing": [("GRPO", 0)]}),
        ("undecided", {"eval_points": 0}),
        ("undecided", {"reference_arm": "GSPO"}),
        ("At 10 steps on chain", {"spec_changes": {"budget": Budget(steps=10)}}),
    ],
)
def test_poor_studies_still_make_an_honest_report(tmp_path: Path, words: str, options: dict[str, Any]) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "GSPO"], [0], 10, **options)
    files = write_report(tmp_path / "s", draw=False)
    report = json.loads(files["json"].read_text())
    assert words in report["answer"]["headline"]
    assert words in parse(files["html"]).text
    assert report["answer"]["status"] in ("none", "undecided", "single")
    assert terminal_table(report, 80)


def test_one_arm_has_nothing_to_compare_with(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO"], [0, 1, 2], 10)
    report = build_report(read_study(tmp_path / "s"))
    assert report["answer"]["status"] == "single"
    assert "GRPO scores" in report["answer"]["headline"]
    assert report["answer"]["uncontrolled"]


def test_missing_metrics_are_not_applicable_with_a_reason(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 10)
    for run in read_study(tmp_path / "s").runs:
        bare = [{"step": r["step"], "sampled_tokens_cum": r["sampled_tokens_cum"]} for r in run.steps]
        (run.path / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bare))
        result = json.loads((run.path / "result.json").read_text())
        result["algorithm_resolved"]["updates"] = {"mini_batches": 1, "epochs": 1}
        (run.path / "result.json").write_text(json.dumps(result))
    files = write_report(tmp_path / "s", draw=False)
    page = parse(files["html"]).text
    assert "one update per rollout batch: the ratio is 1 by construction" in page
    assert "entropy was not recorded" in page
    assert "so the clipping algorithms coincide" in page


def test_invalid_runs_are_named_and_not_ranked(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 10)
    run = read_study(tmp_path / "s").of("PPO")[0]
    result = json.loads((run.path / "result.json").read_text())
    (run.path / "result.json").write_text(
        json.dumps({**result, "validity": "INVALID", "validity_reasons": ["verifier"]})
    )
    report = build_report(read_study(tmp_path / "s"))
    assert arm(report, "PPO")["n"] == 2
    assert arm(report, "PPO")["invalid"] == [run.path.name]


def test_a_run_with_a_warning_counts_and_says_why(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 10)
    run = read_study(tmp_path / "s").of("PPO")[0]
    result = json.loads((run.path / "result.json").read_text())
    reason = "nothing is ever clipped"
    (run.path / "result.json").write_text(json.dumps({**result, "validity": "WARN", "validity_reasons": [reason]}))
    report = build_report(read_study(tmp_path / "s"))
    assert arm(report, "PPO")["n"] == 3
    assert arm(report, "PPO")["invalid"] == []
    page = parse(write_report(tmp_path / "s", draw=False)["html"]).text
    assert "WARN" in page
    assert reason in page


def test_ten_seeds_are_decided_by_the_max_t_permutation(tmp_path: Path) -> None:
    write_fake_study(
        tmp_path / "s",
        ["GRPO", "PPO", "DAPO"],
        range(10),
        4,
        eval_points=1,
        gains={"GRPO": 0.1, "PPO": 0.1, "DAPO": 0.5},
    )
    report = build_report(read_study(tmp_path / "s"))
    assert all(c["test"].startswith("max-|t|") for c in report["comparisons"])
    assert "max-|t| p < 0.001" in report["answer"]["headline"]
    assert report["ranks"][0]["arms"][0]["probability"][0] == 1.0


def test_arms_of_two_rosters_have_a_reference_each(tmp_path: Path) -> None:
    arms = [
        ArmSpec(name="GRPO", algorithm="grpo"), ArmSpec(name="PPO", algorithm="ppo"),
        ArmSpec(name="GRPO published", algorithm="grpo", roster="published"),
        ArmSpec(name="PPO published", algorithm="ppo", roster="published"),
    ]  # fmt: skip
    write_fake_study(tmp_path / "s", arms, [0, 1, 2], 10)
    report = build_report(read_study(tmp_path / "s"))
    assert {(c["a"], c["b"]) for c in report["comparisons"]} == {("PPO", "GRPO"), ("PPO published", "GRPO published")}
    assert len({a["style"]["color"] for a in report["arms"]}) == 4
