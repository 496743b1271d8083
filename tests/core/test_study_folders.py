"""Reading run and study folders: complete, unfinished, torn, foreign, and written by hand from the README."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.errors import InfrastructureError, UsageError
from harness.core.results import read_run, read_study
from tests.core.test_schema_files import validate_study
from tests.fakes.run_folders import write_fake_study

README = Path(__file__).parents[2] / "results" / "README.md"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    write_fake_study(
        path, arms=("PPO", "GRPO"), seeds=(0, 1), steps=10, collapsed=[("GRPO", 1)], unfinished=[("PPO", 0)],
        missing=[("PPO", 1)],
    )  # fmt: skip
    return path


def run_of(study: Path, arm: str) -> Path:
    return sorted(study.glob(f"runs/{arm}-s0-*"))[0]


def test_reads_a_study(study: Path) -> None:
    found = read_study(study)
    assert [(r.spec.arm, r.spec.seed, r.state) for r in found.runs] == [
        ("PPO", 0, "started"), ("GRPO", 0, "finished"), ("GRPO", 1, "finished"),
    ]  # fmt: skip
    assert found.missing == (("PPO", 1),)
    assert found.unlisted == ()
    healthy, collapsed = found.of("GRPO")
    assert len(healthy.steps) == 10
    assert [e.split for e in healthy.evals].count("test") == 2
    assert healthy.events == []
    assert collapsed.result is not None
    assert collapsed.result.status == "collapsed"
    assert collapsed.events[0].severity == "COLLAPSE"
    assert healthy.samples


def test_run_id_is_the_folder_name(study: Path) -> None:
    for run in read_study(study).runs:
        assert run.run_id == run.spec.run_id


def test_fakes_are_deterministic(tmp_path: Path) -> None:
    for name in "ab":
        write_fake_study(tmp_path / name, arms=("GRPO",), seeds=(0,), steps=3, name="same")
    a, b = (sorted((tmp_path / name).rglob("*.*")) for name in "ab")
    assert [p.read_bytes() for p in a if p.is_file()] == [p.read_bytes() for p in b if p.is_file()]


def test_torn_last_line_is_left_out(study: Path) -> None:
    file = run_of(study, "grpo") / "steps.jsonl"
    file.write_text(file.read_text() + '{"schema_version":1,"st')
    assert len(read_run(file.parent).steps) == 10


def test_broken_middle_line_is_an_error(study: Path) -> None:
    file = run_of(study, "grpo") / "steps.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", *lines[1:]]) + "\n")
    with pytest.raises(InfrastructureError, match="line 2"):
        read_run(file.parent)


def test_unknown_schema_version_is_refused(study: Path) -> None:
    folder = run_of(study, "grpo")
    for name in ("steps.jsonl", "evals.jsonl", "spec.json", "result.json"):
        original = (folder / name).read_text()
        (folder / name).write_text(original.replace('"schema_version":1', '"schema_version":7'))
        with pytest.raises(UsageError, match="schema_version 7") as caught:
            read_run(folder)
        assert caught.value.instead
        (folder / name).write_text(original)


def test_half_written_folders(study: Path) -> None:
    folder = run_of(study, "grpo")
    (folder / "result.json").write_text('{"schema_version":1,')
    with pytest.raises(UsageError, match=r"result\.json: not JSON"):
        read_run(folder)
    (folder / "result.json").unlink()
    assert read_run(folder).state == "started"
    (folder / "spec.json").unlink()
    with pytest.raises(UsageError, match=r"no spec\.json"):
        read_run(folder)
    assert ("GRPO", 0) in read_study(study).missing


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no study\.yaml"):
        read_study(tmp_path)
    (tmp_path / "study.yaml").write_text("name: [")
    with pytest.raises(UsageError, match="not YAML"):
        read_study(tmp_path)
    (tmp_path / "study.yaml").write_text("name: x\nbudgett: {}\n")
    with pytest.raises(UsageError):
        read_study(tmp_path)


def test_unknown_key_names_the_near_one(study: Path) -> None:
    folder = run_of(study, "grpo")
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"sede": 1}))
    with pytest.raises(UsageError, match="seed"):
        read_run(folder)


def test_of_two_runs_of_an_arm_and_seed_the_one_like_the_study_is_read(study: Path) -> None:
    folder = run_of(study, "grpo")
    spec = json.loads((folder / "spec.json").read_text())
    old = study / "runs" / "grpo-s0-zzzzzzzz"
    old.mkdir()
    (old / "spec.json").write_text(json.dumps(spec | {"budget": {"sampled_tokens": 5}}))
    found = read_study(study)
    assert found.unlisted == (old.name,)
    assert folder.name in [run.run_id for run in found.runs]


def test_folder_written_by_hand_from_the_readme(tmp_path: Path) -> None:
    examples = re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 7
    for name, text in examples:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    validate_study(tmp_path)
    found = read_study(tmp_path)
    assert found.missing == ()
    run = found.runs[0]
    assert (len(run.steps), len(run.evals), len(run.events), len(run.samples)) == (2, 3, 1, 1)
    assert run.result is not None
    assert run.result.final_score == 0.5


def test_readme_names_every_row_column_and_family() -> None:
    from harness.core.metrics import METRICS, ROW_COLUMNS

    text = README.read_text(encoding="utf-8")
    words = {c.key for c in ROW_COLUMNS} | {m.key.split("/")[0] for m in METRICS}
    assert [w for w in sorted(words) if f"`{w}`" not in text] == []


def test_reading_needs_no_torch() -> None:
    code = (
        "import harness.core.results, harness.core.metrics, harness.core.schema, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=README.parents[1])
