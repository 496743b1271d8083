"""Learning curves of our GRPO and TRL's on the embedded model: same settings and prompts, each with its own rollouts.

    OMP_NUM_THREADS=1 python scripts/trl_learning_curves.py results/reference/trl-parity

Every 10 rollout batches both models answer the same validation prompts, and at the end 8000 test prompts, through our
sampler, grader and random numbers. The finals and the means of the curves are compared by two one-sided tests (TOST)
at +-0.03 over paired seeds. Finished runs in FOLDER/runs are kept, so the command continues where it stopped; about
10 minutes on a quiet core. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback

from harness.assemble import Assembly, assemble
from harness.bench.parity import WATCHED, prompts_of, run_spec, trl_settings
from harness.bench.trl_grpo import Grader, build_trainer, quiet
from harness.core.errors import UsageError
from harness.core.provenance import collect as collect_provenance
from harness.core.results import write_atomic
from harness.evaluate.heldout import evaluate
from harness.rollout.order import held_out_prompts
from harness.stats.paired import paired_difference
from harness.train.loop import Progress, train

STEPS, EVERY, DELTA, ALPHA = 100, 10, 0.03, 0.05
PROMPTS, FINAL_PROMPTS = 2000, 8000
SIDES = ("ours", "trl")


def score(parts: Assembly, split: Any, prompts: int) -> dict[str, float]:
    """pass@1 and mean length of the policy as it stands."""
    record, _ = evaluate(
        lambda items, n, key: parts.collector.collect(items, n, key).groups,
        held_out_prompts(parts.task, split, prompts),
        split=split,
        task=parts.task.info.name,
        num_samples=1,
        step=0,
        sampled_tokens=0,
    )
    return {"pass@1": record.score, "length": record.length_mean}


def points(parts: Assembly, steps: Iterator[int]) -> list[dict[str, float]]:
    """The curve: validation before training and whenever `steps` reaches a multiple of EVERY."""
    curve = [{"step": 0, **score(parts, "validation", PROMPTS)}]
    for step in steps:
        if step % EVERY == 0:
            curve.append({"step": step, **score(parts, "validation", PROMPTS)})
    return curve


def run_ours(seed: int, told: Callable[[int], None]) -> dict[str, Any]:
    """Our loop."""
    parts = assemble(run_spec(trl_settings(rollouts=STEPS, seed=seed)))

    def steps() -> Iterator[int]:
        for outcome in train(parts.trainer, Progress()):
            told(outcome.progress.step)
            yield outcome.progress.step

    return {"curve": points(parts, steps()), "final": score(parts, "test", FINAL_PROMPTS)}


class Watcher(TrainerCallback):
    """Scores the model while TRL trains it."""

    def __init__(self, parts: Assembly, per_step: int, told: Callable[[int], None]) -> None:
        self.parts, self.per_step, self.told = parts, per_step, told
        self.curve = points(parts, iter(()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, rest = divmod(state.global_step, self.per_step)
        if rest == 0:
            self.told(step)
            self.curve += points(self.parts, iter((step,)))[1:] if step % EVERY == 0 else []


def run_trl(seed: int, told: Callable[[int], None]) -> dict[str, Any]:
    """TRL's GRPOTrainer on the same model object, so that our evaluator sees what it trains."""
    settings = trl_settings(rollouts=STEPS, seed=seed)
    parts = assemble(run_spec(settings))
    prompts = prompts_of(settings)
    watcher = Watcher(parts, settings.mini_batches, told)
    with TemporaryDirectory() as folder:
        trainer = build_trainer(
            settings,
            model=parts.model.policy,
            tokenizer=parts.model.tokenizer,
            prompts=prompts,
            reward=Grader(parts.task, prompts, parts.model.eos_ids),
            folder=folder,
            chat=False,
            callbacks=[watcher],
        )
        trainer.train()
    return {"curve": watcher.curve, "final": score(parts, "test", FINAL_PROMPTS)}


def run_all(folder: Path, seeds: range) -> dict[tuple[str, int], dict[str, Any]]:
    """Every run that is not there yet, seed by seed."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    total, begun = len(seeds) * len(SIDES), time.monotonic()
    for seed in seeds:
        for side in SIDES:
            path = folder / "runs" / f"{side}-s{seed}.json"
            if not path.exists():

                def told(step: int, name: str = path.stem) -> None:
                    passed = time.monotonic() - begun
                    print(
                        f"\r[{len(found) + 1}/{total}] {name} step {step}/{STEPS}, {passed:.0f} s",
                        end="",
                        file=sys.stderr,
                    )

                result = {"ours": run_ours, "trl": run_trl}[side](seed, told)
                print(file=sys.stderr)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, json.dumps({"side": side, "seed": seed, **result}))
            found[side, seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(found: dict[tuple[str, int], dict[str, Any]], seeds: range) -> dict[str, Any]:
    """TOST of the finals and of the curves' means over paired seeds; the mean difference at every point."""
    finals = {side: [found[side, s]["final"]["pass@1"] for s in seeds] for side in SIDES}
    means = {side: [fmean(p["pass@1"] for p in found[side, s]["curve"][1:]) for s in seeds] for side in SIDES}
    at = [int(p["step"]) for p in found["ours", seeds[0]]["curve"]]
    gaps = {
        step: fmean(found["ours", s]["curve"][i]["pass@1"] - found["trl", s]["curve"][i]["pass@1"] for s in seeds)
        for i, step in enumerate(at)
    }
    tests = {}
    for name, scores in {"final test pass@1": finals, "mean of the curve": means}.items():
        d = paired_difference(scores["ours"], scores["trl"], DELTA)
        tests[name] = {
            "ours": scores["ours"],
            "trl": scores["trl"],
            "paired": d.as_dict(),
            "equivalent": d.p_tost is not None and d.p_tost < ALPHA,
        }
    p = collect_provenance([])
    return {
        "delta": DELTA,
        "alpha": ALPHA,
        "seeds": list(seeds),
        "tests": tests,
        "mean_difference_by_step": gaps,
        "settings": trl_settings(rollouts=STEPS, seed=0).as_dict(),
        "machine": p.cpu,
        "packages": {name: _version(name) for name in WATCHED},
    }


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def write_csv(path: Path, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    """One line per evaluation."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["side", "seed", "step", "split", "pass@1", "mean_length"])
        for (side, seed), run in sorted(found.items()):
            lines = [*run["curve"], {"step": STEPS, **run["final"], "split": "test"}]
            for p in lines:
                split = p.get("split", "validation")
                writer.writerow([side, seed, p["step"], split, f"{p['pass@1']:.4f}", f"{p['length']:.2f}"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.seeds < 3:
        raise UsageError(f"--seeds {given.seeds}", "below three pairs nothing can be tested", "--seeds 5")
    torch.set_num_threads(1)
    quiet()
    seeds = range(given.seeds)
    found = run_all(given.folder, seeds)
    result = summary(found, seeds)
    write_csv(given.folder / "curves.csv", found)
    write_atomic(given.folder / "summary.json", json.dumps(result, indent=1) + "\n")
    for name, test in result["tests"].items():
        d = test["paired"]
        said = "equivalent" if test["equivalent"] else "not shown to be equivalent"
        print(
            f"{name}: ours {fmean(test['ours']):.4f}, TRL {fmean(test['trl']):.4f}, difference {d['value']:+.4f} "
            f"[{d['low']:+.4f}, {d['high']:+.4f}], TOST p = {d['p_tost']:.2g}: {said} within +-{DELTA}"
        )


if __name__ == "__main__":
    main()
