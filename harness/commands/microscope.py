"""`harness microscope`: why algorithms differ, on one recorded rollout batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from harness.commands.lists import names
from harness.core.errors import InfrastructureError, UsageError, near
from harness.core.results import write_atomic
from harness.core.spec import Roster
from harness.study.build import parse_value

WIDTH = 80
FILES = {"json": "microscope.json", "html": "microscope.html", "tokens": "microscope.safetensors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroscopeOptions:
    """The command line of `harness microscope`."""

    run: Path | None
    fixture: bool
    step: int | None
    algorithms: str | None
    roster: str
    sets: tuple[str, ...]
    checkpoint: bool
    groups: int
    rows: int
    out: Path | None
    as_json: bool


def run_microscope(options: MicroscopeOptions) -> int:
    """Looks, writes the files, prints the table (or the JSON)."""
    from harness.microscope.describe import Showing
    from harness.microscope.replay import Request, fixture_folder, replay
    from harness.report.microscope import render, terminal

    if options.fixture == (options.run is not None):
        raise UsageError(
            "microscope with both a run folder and --fixture" if options.fixture else "microscope without a run folder",
            "it looks at one recorded rollout batch",
            "a run folder such as results/<study>/runs/<run>, or --fixture for the bundled one",
        )
    if options.roster not in get_args(Roster):
        raise UsageError(
            f"--roster {options.roster}", "there is no such roster", near(options.roster, get_args(Roster))
        )
    if min(options.groups, options.rows) < 1:
        raise UsageError(
            f"--groups {options.groups} --rows {options.rows}", "nothing would be shown", "1 or more of each"
        )
    folder = options.run if options.run is not None else fixture_folder()
    request = Request(
        folder=folder,
        step=options.step,
        arms=names("--algorithms", options.algorithms),
        roster=cast("Roster", options.roster),
        changes=_changes(options.sets),
        at_checkpoint=options.checkpoint,
        showing=Showing(groups=options.groups, rows=options.rows),
    )
    record, tensors = replay(request)
    source = record.model_dump_json(indent=1)
    data: dict[str, Any] = json.loads(source)
    target = options.out or Path("microscope" if options.fixture else folder / "microscope")
    write_atomic(target / FILES["json"], source + "\n")
    write_atomic(target / FILES["html"], render(data))
    _write_tensors(target / FILES["tokens"], tensors)
    if options.as_json:
        print(source)
    else:
        print(terminal(data, WIDTH))
        print("\n" + "\n".join(f"{kind:7} {target / name}" for kind, name in FILES.items()))
    return 0


def _changes(sets: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in sets:
        path, sign, value = item.partition("=")
        if not sign or not path:
            raise UsageError(f"--set {item}", "not of the form path=value", "for example -s GFPO:selection.k=4")
        found[path] = parse_value(value)
    return found


def _write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_suffix(".tmp")
    try:
        save_file(dict(tensors), temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise InfrastructureError(f"cannot write {path}: {error}; free space or choose another --out") from error
