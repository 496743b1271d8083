"""Kills runs with SIGKILL at random moments, continues them, and compares with the run that was left alone.

`python -m tests.run.resume_check --out results/reference/resume` is what `make test-resume` does: six algorithms, 20
single kills each, and one run each that is killed again and again. Exit code 0: everything bit-identical.

Runs are forks of this process, which has imported everything: a run then takes a second or two instead of ten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness.core.checkpoints import leftovers, listed
from harness.core.provenance import collect
from harness.core.results import CHECKPOINTS, RESULT, STEPS, read_lines, write_atomic
from harness.core.spec import ModelSpec, RunSpec
from harness.models.load import load
from harness.models.weights import weights_sha256
from harness.run import main
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

# Of every algorithm the variant with the most to remember: critic and its warm-up, a measured clip range, dynamic
# sampling's cursor, an adaptive selection's history, process rewards.
ARMS: dict[str, dict[str, Any]] = {
    "ppo": {"overrides": {"advantage.warmup_steps": 2}},
    "grpo": {},
    "dapo": {},
    "gspo_calibrated": {},
    "gspo_token_process": {},
    "gfpo_adaptive": {"overrides": {"selection.warmup_prompts": 8}},
}
NUM_STEPS, MOMENTS = 12, 20
START_S = 0.05  # forking and reading the spec; nothing is written before


TEXT = """\
Each of six algorithms runs {steps} steps of the embedded model (8 prompts a step, transformers sampler, one CPU thread)
once to its end, then {moments} times with a SIGKILL at a random moment (uniform over the duration, seeded) and a
continuation in a new process, and once more with a SIGKILL again and again. Compared with the run that was left alone,
bit for bit: all tensors of the last checkpoint (weights, moments, critic, random state), every row of steps.jsonl
without its wall-clock columns, and the rest (evaluations, samples, rollout files, result)."""


def spec_of(arm: str, steps: int) -> RunSpec:
    """Steps of eight prompts, evaluated at four places, saved at every second step."""
    return run_spec(
        arm, steps=steps, recipe={"prompts_per_step": 8}, checkpoints={"every": 2},
        eval={"points": 4, "prompts": 16, "final_prompts": 64}, **ARMS[arm],
    )  # fmt: skip


def run_for(folder: Path, seconds: float | None) -> int | None:
    """Runs a folder in a process of its own; its exit code, or None where it was killed after `seconds`."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with (folder / "log.txt").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = main([str(folder)])
        finally:
            os._exit(code)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return None if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of all tensors of the last checkpoint, of steps.jsonl without wall-clock columns, of everything else."""
    files = sorted(listed(folder / CHECKPOINTS)[-1].glob("*.safetensors"))
    tensors = {f"{f.name}:{name}": t for f in files for name, t in load_file(f).items()}
    numbers = numbers_of(folder)
    steps, rest = numbers.pop("steps"), numbers
    del rest["weights"]
    return {
        "weights": weights_sha256(tensors),
        "steps": hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest(),
        "rest": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest(),
    }


def left_behind(folder: Path) -> dict[str, Any]:
    """What a kill found done."""
    text = (folder / STEPS).read_bytes() if (folder / STEPS).exists() else b""
    saved = listed(folder / CHECKPOINTS)
    return {
        "rows": sum(1 for _ in read_lines(folder / STEPS)),
        "torn_row": bool(text) and not text.endswith(b"\n"),
        "checkpoint": int(saved[-1].name) if saved else None,
        "half_checkpoints": len(leftovers(folder / CHECKPOINTS)),
        "result": (folder / RESULT).exists(),
    }


def killed_once(spec: RunSpec, place: Path, expected: dict[str, str], whole_s: float, rng: random.Random) -> Any:
    """One kill at a uniform moment of the run, one continuation, the comparison. A run that was faster is repeated."""
    while True:
        shutil.rmtree(place, ignore_errors=True)
        folder = make_folder(spec, place)
        start, moment = time.monotonic(), rng.uniform(START_S, whole_s)
        if run_for(folder, moment) is None:
            break
        whole_s = min(whole_s, time.monotonic() - start)
    found = left_behind(folder)
    code = run_for(folder, None)
    return {"killed_after_s": round(moment, 3), **found, **_compared(folder, code, expected)}


def killed_often(
    spec: RunSpec, place: Path, expected: dict[str, str], whole_s: float, rng: random.Random, kills: int
) -> Any:
    """The same run killed up to `kills` times before it may finish."""
    folder = make_folder(spec, place)
    moments: list[float] = []
    code: int | None = None
    while len(moments) < kills and code is None:
        moments.append(round(rng.uniform(START_S, whole_s), 3))
        code = run_for(folder, moments[-1])
    survived = moments if code is None else moments[:-1]
    code = run_for(folder, None) if code is None else code
    return {"killed_after_s": survived, **_compared(folder, code, expected)}


def _compared(folder: Path, code: int | None, expected: dict[str, str]) -> dict[str, Any]:
    same = {what: code == 0 and value == expected[what] for what, value in hashes(folder).items()} if code == 0 else {}
    return {"exit_code": code, "identical": {what: same.get(what, False) for what in expected}}


def check(arm: str, steps: int, moments: int, seed: int, work: Path) -> dict[str, Any]:
    """The verdicts on one algorithm."""
    spec = spec_of(arm, steps)
    start = time.monotonic()
    folder = make_folder(spec, work / f"{arm}-whole")
    assert run_for(folder, None) == 0, (folder / "log.txt").read_text()
    whole_s = time.monotonic() - start
    expected = hashes(folder)
    rng = random.Random(f"{arm} {seed}")
    kills = [killed_once(spec, work / f"{arm}-killed", expected, whole_s, rng) for _ in range(moments)]
    often = killed_often(spec, work / f"{arm}-often", expected, whole_s, rng, moments)
    return {
        "arm": arm, "algorithm": spec.algorithm, "run_id": spec.run_id, "uninterrupted_s": round(whole_s, 2),
        "sha256": expected, "kills": kills, "one_run_killed_again_and_again": often,
        "identical": all(all(k["identical"].values()) for k in [*kills, often]),
    }  # fmt: skip


def report(data: dict[str, Any]) -> str:
    """README.md of the committed result."""
    found, facts, moments, steps = data["arms"], data["provenance"], data["moments"], data["steps"]
    kills = [k for arm in found for k in arm["kills"]]
    rows = [
        f"| {a['arm']} | {sum(all(k['identical'].values()) for k in a['kills'])}/{len(a['kills'])} | "
        f"{'yes' if all(a['one_run_killed_again_and_again']['identical'].values()) else '**no**'}, "
        f"after {len(a['one_run_killed_again_and_again']['killed_after_s'])} kills | {a['uninterrupted_s']:.1f} | "
        f"`{a['sha256']['weights'][:16]}` | `{a['sha256']['steps'][:16]}` |"
        for a in found
    ]
    places = [
        f"{sum(k['checkpoint'] is None for k in kills)} before the first checkpoint",
        f"{sum(k['half_checkpoints'] > 0 for k in kills)} with a checkpoint half written or half removed",
        f"{sum(k['checkpoint'] is not None and k['rows'] > k['checkpoint'] for k in kills)} with rows newer than "
        "the newest checkpoint",
        f"{sum(k['torn_row'] for k in kills)} inside a row",
        f"{sum(k['rows'] == steps for k in kills)} after the last step",
    ]
    return "\n".join(
        [
            "# resume: SIGKILL at random moments",
            "",
            "```",
            f"make test-resume        # = {facts['command']}",
            "```",
            "",
            TEXT.format(steps=steps, moments=moments),
            "",
            "| arm | identical after one kill | identical after many | seconds | sha256 of the tensors | of the rows |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Where the kills fell: {', '.join(places)}. Every kill with its moment and verdict: "
            "[resume.json](resume.json).",
            "",
            f"{facts['cpu']}, {facts['num_cpus']} CPUs, {facts['system']}, Python {facts['python']}, "
            + ", ".join(f"{n} {v}" for n, v in facts["packages"].items() if n in ("torch", "transformers", "numpy"))
            + f", harness {facts['harness_version']}, numerics version {facts['numerics_version']}, commit "
            f"{(facts['git_commit'] or 'unknown')[:12]}{' with changes' if facts['git_dirty'] else ''}, "
            f"{facts['started']}; {data['minutes']:.0f} minutes.",
            "",
        ]
    )


def provenance() -> dict[str, Any]:
    """Command, versions and machine."""
    facts = collect([]).model_dump(mode="json")
    wanted = ("harness_version", "numerics_version", "git_commit", "git_dirty", "python", "packages", "cpu", "num_cpus")
    command = "python -m tests.run.resume_check --out results/reference/resume"
    return {k: facts[k] for k in (*wanted, "started")} | {"system": platform.system(), "command": command}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.run.resume_check", description=__doc__)
    parser.add_argument("--moments", type=int, default=MOMENTS, help="single kills per algorithm")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="rollout steps of a run")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="folder for README.md and resume.json")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    """Checks, prints one line per algorithm, writes the result."""
    options = parse(arguments)
    torch.set_num_threads(1)
    load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32")  # imports what runs import late
    found: list[dict[str, Any]] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        for arm in options.arms.split(","):
            found.append(check(arm, options.steps, options.moments, options.seed, Path(work)))
            good = sum(all(k["identical"].values()) for k in found[-1]["kills"])
            often = "identical" if all(found[-1]["one_run_killed_again_and_again"]["identical"].values()) else "DIFFERS"
            print(f"{arm:20} {good}/{options.moments} identical; killed again and again: {often}", flush=True)
    if options.out is not None:
        data = {
            "schema_version": 1, "provenance": provenance(), "seed": options.seed, "steps": options.steps,
            "moments": options.moments, "minutes": round((time.monotonic() - start) / 60, 1),
            "identical": all(a["identical"] for a in found), "arms": found,
        }  # fmt: skip
        write_atomic(options.out / "resume.json", json.dumps(data, indent=1) + "\n")
        write_atomic(options.out / "README.md", report(data))
    return 0 if all(a["identical"] for a in found) else 1


if __name__ == "__main__":
    sys.exit(run())
