"""report.json of an older version -> the layout of today, where what it holds is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.report.curves import PANELS
from harness.report.trajectories import trajectories
from harness.report.verdict import estimate

FROM = 2  # the oldest version that can be read
LIMITS = {key: limit for key, *_, limit in PANELS}


def upgraded(data: dict[str, Any], kind: str, now: int) -> dict[str, Any]:
    """A report, or one of several studies, as version `now`; the same data where it is that already."""
    if data.get("schema_version") == now:
        return data
    if kind != data["kind"]:
        return {**data, "schema_version": now, "studies": [upgraded(r, kind, now) for r in data["studies"]]}
    return {**_to_3(data), "schema_version": now}


def _to_3(report: Mapping[str, Any]) -> dict[str, Any]:
    """3 added the time per million tokens (from those of every run), ratio by length, entropy paths, limits, routes."""
    runs = [{**r, "absent": [], "seconds_per_million": _rate(r)} for r in report["runs"]]
    arms = [
        {**a, "seconds_per_million": estimate([r for r in runs if r["arm"] == a["name"]], "seconds_per_million")}
        for a in report["arms"]
    ]
    device, threads = report["provenance"]["backend"].get("device", "cpu"), report["provenance"]["backend"]["threads"]
    panels = [{**p, "limit": LIMITS.get(p["key"])} for p in report["panels"]]
    return {"routing": {}, **report, "runs": runs, "arms": arms, "panels": panels, "ratio_by_length": {},
            "trajectories": trajectories(report["curves"], panels),
            "study": {**report["study"], "clock": clock(device, threads)}}  # fmt: skip


def _rate(run: Mapping[str, Any]) -> float | None:
    finished = run["status"] != "unfinished" and run["wallclock_s"] and run["sampled_tokens"]
    return 1e6 * run["wallclock_s"] / run["sampled_tokens"] if finished else None


def clock(device: str, threads: int) -> str:
    """The unit of training time: seconds of the one GPU or of the CPU threads that a run has."""
    if device != "cpu":
        return "GPU-s"
    return "CPU-s" if threads == 1 else f"s on {threads} CPU threads"
