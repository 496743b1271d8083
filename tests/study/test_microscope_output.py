"""What the microscope prints and writes, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from harness import cli
from harness.core.microscope import Microscope
from harness.microscope.describe import Showing
from harness.microscope.replay import Request, fixture_folder, replay
from harness.report.microscope import headline, render, shade, terminal

EVIL = "<script>alert(1)</script>"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """The default arms on the bundled batch, as plain data."""
    found, _ = replay(Request(folder=fixture_folder(), showing=Showing(groups=2, rows=3, tokens=5)))
    data: dict[str, Any] = json.loads(found.model_dump_json())
    return data


def test_the_record_reads_back(record: dict[str, Any]) -> None:
    found = Microscope.model_validate(record)
    assert found.schema_version == 1
    assert len(found.groups) == 2
    for group in found.groups:
        assert 1 <= len(group.rows) <= 3
        assert {row.correct for row in group.rows} == {True, False}
        for row in group.rows:
            assert len(row.tokens) == min(5, row.length)
            assert all(len(v.weight) == len(row.tokens) for v in row.arms.values())
    for a in found.arms:
        assert sum(a.decile_share) == pytest.approx(1)
        assert 0 < a.effective_rows <= a.rows_admitted


def test_the_terminal_is_eighty_columns(record: dict[str, Any]) -> None:
    said = terminal(record, 80)
    assert max(map(len, said.splitlines())) <= 80
    for word in ("GRPO", "GSPO calibrated", "cosine", "effective", "all tokens alike", "no critic values"):
        assert word in said
    many = {**record, "arms": record["arms"] * 3, "cosine": [line * 3 for line in record["cosine"]] * 3}
    assert max(map(len, terminal(many, 80).splitlines())) <= 80


def poisoned(value: Any, keep: tuple[str, ...]) -> Any:
    """Every string with a script in it, but those that name a case."""
    if isinstance(value, dict):
        return {k: v if k in keep else poisoned(v, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, keep) for v in value]
    return EVIL + value if isinstance(value, str) else value


def test_the_page_escapes_whatever_a_model_wrote(record: dict[str, Any]) -> None:
    page = render(poisoned(record, ("kept", "kind")))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 50


def test_the_page_stands_alone(record: dict[str, Any]) -> None:
    page = render(record)
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count('class="resp"') == sum(len(g["rows"]) for g in record["groups"])
    shown = record["groups"][0]["rows"][0]
    assert f"{shown['length'] - 5} more" in page or shown["length"] <= 5
    classes = set(re.findall(r'class="t ([^"]+)"', page))
    assert any(c.startswith("u") for c in classes)
    assert any(c.startswith("d") for c in classes)
    assert any("c1" in c or "c2" in c for c in classes)
    assert render(record) == page


def test_shades() -> None:
    """Negative weight = the update makes the token more likely."""
    assert [shade(w, 0) for w in (-9, -2, -1, -0.5, -0.1, 0)] == ["u5", "u4", "u3", "u2", "u1", "z"]
    assert [shade(w, 0) for w in (9, 0.1)] == ["d5", "d1"]
    assert shade(0, 2) == "z c2"


def test_the_headline_says_what_differs(record: dict[str, Any]) -> None:
    assert "GSPO = GSPO-token" in headline(record)
    assert "clips" in headline(record)
    assert "Nothing to compare" in headline({"arms": [], "cosine": []})


def test_the_verb_writes_three_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["microscope", "--fixture", "-a", "grpo,gspo", "--roster", "published", "--groups", "1", "--json"]
    assert run(monkeypatch, *arguments, "--out", str(out)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "microscope.json").read_text(encoding="utf-8"))
    assert Microscope.model_validate(printed).roster == "published"
    assert "<!doctype html>" in (out / "microscope.html").read_text(encoding="utf-8")
    with safe_open(out / "microscope.safetensors", "pt") as file:
        assert {"ratio", "GRPO.weight", "GSPO.clip"} <= set(file.keys())
        assert file.get_tensor("GRPO.weight").shape == (128, file.get_tensor("ratio").shape[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{fixture}", "--step", "3"], ["step 3", "not kept", "one of: 1"]),
        (["{fixture}", "-a", "grpoo"], ["grpoo", "did you mean grpo"]),
        (["{fixture}", "-a", "ppo_trl"], ["one position past the last token"]),
        (["{fixture}", "-a", ","], ["it names nothing"]),
        (["{fixture}", "-a", "grpo,grpo"], ["more than once"]),
        (["{fixture}", "--checkpoint"], ["no checkpoint", "leave --checkpoint out"]),
        (["{fixture}", "--roster", "mached"], ["mached", "did you mean matched"]),
        (["{fixture}", "-s", "GRPO:surrogate.hi=1"], ["surrogate.hi", "surrogate.high"]),
        (["{fixture}", "-s", "oops"], ["path=value"]),
        (["{fixture}", "--groups", "0"], ["--groups 0"]),
        (["{fixture}", "--fixture"], ["both a run folder and --fixture"]),
        ([], ["without a run folder", "--fixture"]),
        (["{empty}"], ["no rollouts/<step>.safetensors", "--fixture"]),
        (["{torn}"], ["cannot be read", "another --step"]),
        (["{tmp}"], ["no spec.json", "run folder"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = (fixture_folder() / "spec.json").read_text(encoding="utf-8")
    for name in ("empty", "torn"):
        (tmp_path / name / "rollouts").mkdir(parents=True)
        (tmp_path / name / "spec.json").write_text(spec, encoding="utf-8")
    (tmp_path / "torn" / "rollouts" / "00000001.safetensors").write_bytes(b"\x08\x00\x00\x00")
    places = {"fixture": fixture_folder(), "tmp": tmp_path, "empty": tmp_path / "empty", "torn": tmp_path / "torn"}
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, "microscope", *(a.format(**places) for a in arguments)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for word in ("error:", "why:", "instead:", *words):
        assert word in said, said
    assert sorted(tmp_path.rglob("*")) == before
