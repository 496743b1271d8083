"""`harness validate-detectors`: events of curves in CSV files, and a small validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from tests.monitor.curves import rows


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["harness", "validate-detectors", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def write(path: Path, curve: list[dict[str, Any]], empty: str = "") -> None:
    names = list(dict.fromkeys(key for row in curve for key in row))
    lines = [",".join(empty if row.get(n) is None else str(row[n]) for n in names) for row in curve]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "healthy.csv", rows(200))
    write(tmp_path / "deeper" / "entropy.csv", rows(200, {"entropy/exact": 0.01}, 120))
    write(tmp_path / "gaps.csv", [r if r["step"] % 3 else {"step": r["step"]} for r in rows(200, {"len/mean": 9}, 120)])
    write(tmp_path / "short.csv", rows(60, {"kl_ref/k3": 2.0}, 30))
    scored = rows(200, {"reward/mean": 0.05, "entropy/exact": 0.01}, 120)
    write(
        tmp_path / "scored.csv",
        [{**r, "eval/chain/validation/avg_at_1": 0.6 if r["step"] < 120 else 0.05} if r["step"] % 10 == 0 else r
         for r in scored],
    )  # fmt: skip
    return tmp_path


def test_curves_give_their_events_as_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--curves", folder, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["healthy.csv"] == []
    assert found["deeper/entropy.csv"] == [
        {"type": "entropy_collapse", "onset": 120, "confirm": 127, "severity": "DEGRADED"}
    ]
    assert [(e["type"], e["onset"]) for e in found["gaps.csv"]] == [("length_collapse", 121)]
    assert [(e["type"], e["onset"], e["confirm"]) for e in found["short.csv"]] == [("kl_blowup", 30, 31)]
    assert {(e["type"], e["severity"]) for e in found["scored.csv"]} >= {
        ("entropy_collapse", "COLLAPSE"), ("reward_collapse", "COLLAPSE"),
    }  # fmt: skip
    assert err == ""


def test_bad_files_are_told_and_the_others_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.csv").write_text("")
    (folder / "no_step.csv").write_text("a,b\n1,2\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    shuffled = rows(200, {"entropy/exact": 0.01}, 120)[::-1]
    write(folder / "shuffled.csv", [{**r, "entropy/exakt": 1, "note": "x"} for r in shuffled] + shuffled[:3])
    write(folder / "nan.csv", rows(200, {"entropy/exact": float("nan"), "grad/norm_pre": float("inf")}, 120))
    assert run(monkeypatch, "--curves", folder, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [found[name] for name in ("empty.csv", "no_step.csv", "binary.csv")] == [[], [], []]
    assert err.count("no row with a number in a column `step`") == 3
    assert [(e["type"], e["confirm"]) for e in found["shuffled.csv"]] == [("entropy_collapse", 127)]
    assert "entropy/exakt is no metric and was left out; did you mean" in err
    assert "not in the order of their steps" in err
    assert "step 200 after step 200 was left out" in err
    assert [(e["type"], e["severity"], e["confirm"]) for e in found["nan.csv"]] == [("numeric", "FATAL", 120)]


def test_nothing_usable_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--curves", tmp_path, "--json") == 2
    assert "no .csv file" in capsys.readouterr().err
    (tmp_path / "empty.csv").write_text("")
    assert run(monkeypatch, "--curves", tmp_path, "--json") == 4


def test_a_small_validation_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--synthetic", "--faults", 1, "--healthy", 1, "--out", tmp_path / "out", "--json") == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(printed["synthetic"]) == {"a", "b", "c"}
    assert printed["rules"]["grad_explosion"] == 1
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Synthetic curves, family C" in text
    assert "| `entropy_collapse` | 1 |" in text
    assert "synthetic curves:" in err
