"""`harness plan`: from stated numbers, from a pilot, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import app, guarded
from harness.core.errors import UsageError
from harness.study.plan import Basis, plan
from tests.fakes.run_folders import write_fake_study


def basis(**changes: object) -> Basis:
    given = {"gain": 0.03, "comparisons": 1, "sd": 0.03, "pairs": None, "pass_rates": [0.3], "tokens": 1000,
             "speed": 10.0, "source": "stated"}  # fmt: skip
    return Basis(**{**given, **changes})  # type: ignore[arg-type]


def command(*words: str) -> int:
    codes: list[int] = []
    return guarded(lambda: codes.append(int(app(["plan", *words], standalone_mode=False) or 0))) or codes[0]


def test_the_numbers_of_the_method() -> None:
    """One SD: ten pairs; TOST with .02 at an SD of .02: 11; 1 - p^G - (1-p)^G."""
    needs = plan(basis(), [8])
    assert needs.seeds == 10
    assert needs.detectable[5] == pytest.approx(1.68 * 0.03, rel=0.01)
    assert plan(basis(gain=0.02, sd=0.02), [8]).seeds_equivalence == 11
    assert needs.informative[8] == pytest.approx(1 - 0.3**8 - 0.7**8)
    assert (needs.tokens, needs.hours) == (20_000, pytest.approx(20_000 / 10 / 3600))
    assert plan(basis(comparisons=5), [8]).seeds > needs.seeds  # type: ignore[operator]
    assert plan(basis(pairs=4), [8]).seeds_upper > needs.seeds  # type: ignore[operator]
    assert needs.hopeless == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pass_rates": [0.0005]}, "choose easier questions"),
        ({"pass_rates": [0.9995], "gain": 0.0003, "sd": 0.0001}, "choose harder questions"),
        ({"sd": 0.9}, "seed pairs per arm"),
        ({"pass_rates": [0.99]}, "no room"),
    ],
)
def test_hopeless_settings_say_why(changes: dict[str, object], reason: str) -> None:
    assert any(reason in words for words in plan(basis(**changes), [4, 8]).hopeless)


def test_impossible_numbers_are_refused() -> None:
    for changes in ({"gain": 0.0}, {"sd": -1.0}, {"pass_rates": [1.2]}):
        with pytest.raises(UsageError):
            plan(basis(**changes), [8])
    with pytest.raises(UsageError):
        plan(basis(), [0])


def test_from_a_pilot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "DAPO"], range(4), 6)
    assert command(str(tmp_path / "s"), "--gain", "0.1", "--json") in (0, 2)
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] >= 3
    assert found["seeds_upper"] >= found["seeds"]
    assert 0.2 < found["base"] < 0.5
    assert found["tokens"] > 0


def test_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--sd", "0.03", "--base", "0.2", "--gain", "0.03", "--tokens", "2000000", "--speed", "900") == 0
    shown = capsys.readouterr().out
    assert "seeds       10" in shown
    assert "hours" in shown
    assert command("--sd", "0.03", "--base", "0.0001") == 2
    assert "cannot succeed" in capsys.readouterr().out
    assert command("--sd", "0.03") == 2
    assert "state both" in capsys.readouterr().err
