"""What may be freed of run folders: checkpoints that nothing refers to, and what interruptions left behind."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.checkpoints import evals_of, events_of, leftovers, listed, remove, size
from harness.core.collapse import best_step, first_collapse
from harness.core.errors import UsageError, near
from harness.core.results import CHECKPOINTS, RESULT, ROLLOUTS, RUNS, SPEC
from harness.core.retention import ROLES, pinned, rungs
from harness.core.spec import CheckpointSpec

KEEPABLE = ("last", "newest", "best", *ROLES, "start", "ladder", "none")
DEFAULT = ("newest", "best", *ROLES, "start")
REFERENCED = ("last", "best", *ROLES, "start")  # by a result, an event or another run: only --force removes these


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One checkpoint, or (step None) something left behind by an interruption."""

    path: Path
    step: int | None
    size: int  # bytes
    roles: tuple[str, ...]  # what it is for
    kept: bool
    why: str  # one phrase


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The checkpoints of one run."""

    run: Path
    state: str  # finished, interrupted, running
    items: Sequence[Item] = field(default_factory=tuple)

    def total(self, *, kept: bool) -> int:
        """Bytes of what is kept, or of what would be freed."""
        return sum(i.size for i in self.items if i.kept == kept)


def runs_below(place: Path) -> list[Path]:
    """The run folders that a path names: itself, those of a study, or those of every study in a results folder."""
    if (place / SPEC).exists():
        return [place]
    for pattern in (f"{RUNS}/*/{SPEC}", f"*/{RUNS}/*/{SPEC}"):
        found = sorted(p.parent for p in place.glob(pattern))
        if found:
            return found
    raise UsageError(
        f"{place}", "neither a run folder, nor a study, nor a folder of studies", "e.g. results, or results/<study>"
    )


def chosen(text: str | None) -> frozenset[str]:
    """`--keep last,best` -> roles."""
    if text is None:
        return frozenset(DEFAULT)
    names = [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in KEEPABLE:
            raise UsageError(f"--keep {text}", f"{name!r} is no reason to keep a checkpoint", near(name, KEEPABLE))
    if not names or ("none" in names and len(names) > 1):
        raise UsageError(f"--keep {text}", "it says both or nothing", f"some of: {', '.join(KEEPABLE)}")
    return frozenset(names) - {"none"}


def starts(runs: Sequence[Path]) -> dict[str, set[str]]:
    """Run name -> checkpoints that other runs under the same results folder begin from."""
    roots = {p.parents[2] if p.parent.name == RUNS else p.parent for p in (r.resolve() for r in runs)}
    found: dict[str, set[str]] = {}
    for spec in (p for root in roots for p in root.glob(f"*/{RUNS}/*/{SPEC}")):
        start = json.loads(spec.read_text(encoding="utf-8")).get("start")
        if start:
            found.setdefault(Path(start["run"]).name, set()).add(str(start["checkpoint"]))
    return found


def survey(run: Path, keep: frozenset[str], users: Mapping[str, set[str]], *, force: bool) -> Survey:
    """What of a run's checkpoints is for what, and what would go."""
    if _is_locked(run):
        return Survey(run=run, state="running")
    finished = (run / RESULT).exists()
    present = {int(p.name): p for p in listed(run / CHECKPOINTS)}
    roles = roles_of(run, sorted(present), users.get(run.name, set()))
    wanted = keep if finished or not keep else keep | {"newest", "ladder"}
    items = [_judged(p, s, roles[s], wanted, force=force) for s, p in present.items()]
    lost = [*leftovers(run / CHECKPOINTS), *leftovers(run), *sorted((run / ROLLOUTS).glob("*.tmp"))]
    items += [
        Item(path=p, step=None, size=_bytes(p), roles=(), kept=False, why="left by an interruption") for p in lost
    ]
    return Survey(run=run, state="finished" if finished else "interrupted", items=items)


def roles_of(run: Path, steps: Sequence[int], users: set[str]) -> dict[int, tuple[str, ...]]:
    """Step -> everything a checkpoint is for: last, newest, best, last_healthy, half, collapsed, start, ladder."""
    data = json.loads((run / SPEC).read_text(encoding="utf-8"))
    spec = CheckpointSpec.model_validate(data.get("checkpoints", {}))
    found: dict[int, list[str]] = {s: [] for s in steps}
    episode = first_collapse(events_of(run))
    named: list[tuple[str, int | None]] = [("last", steps[-1] if steps else None)]
    named += [("newest", s) for s in steps[-spec.newest :]]
    named += [("best", best_step(evals_of(run)))]
    named += [] if episode is None else [*pinned(steps, episode, spec.margin).items()]
    by_name = dict(named)
    named += [("start", int(u) if u.isdigit() else by_name.get(u)) for u in sorted(users)]
    named += [("ladder", s) for s in sorted(rungs(steps, max(steps, default=0), spec.every, spec.dense))]
    for role, step in named:
        if step in found and role not in found[step]:
            found[step].append(role)
    return {s: tuple(r) for s, r in found.items()}


def _judged(path: Path, step: int, roles: tuple[str, ...], keep: frozenset[str], *, force: bool) -> Item:
    wanted = [r for r in roles if r in keep]
    referenced = [r for r in roles if r in REFERENCED]
    why = f"kept: {', '.join(wanted)}" if wanted else "nothing refers to it"
    if not wanted and referenced:
        why = f"{', '.join(referenced)}: " + ("forced" if force else "referred to, only --force removes it")
    kept = bool(wanted) or (bool(referenced) and not force)
    return Item(path=path, step=step, size=size(path), roles=roles, kept=kept, why=why)


def free(found: Survey) -> int:
    """Removes what the survey does not keep, while no other process may write the run; returns bytes."""
    gone = 0
    with _lock(found.run) as mine:
        for item in found.items if mine else ():
            if not item.kept:
                remove(item.path) if item.step is not None or item.path.is_dir() else item.path.unlink(missing_ok=True)
                gone += item.size
    return gone


def human(num_bytes: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"


def _bytes(path: Path) -> int:
    return size(path) if path.is_dir() else path.stat().st_size


def _is_locked(run: Path) -> bool:
    if not (run / ".lock").exists():
        return False
    with _lock(run) as mine:
        return not mine


@contextmanager
def _lock(run: Path) -> Iterator[bool]:
    """The run's lock, if no other process holds it; see `RunWriter`."""
    with (run / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
