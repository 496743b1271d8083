"""Records 20 optimizer steps of TRL's GRPOTrainer for tests/parity, or says how far ours and TRL's end up apart.

    python scripts/record_trl_parity.py tests/parity/grpo_trl_tiny.safetensors --seed 3
    python scripts/record_trl_parity.py --table

The second form prints, for five seeds, the distance of our weights from TRL's, and of TRL's from its own with smaller
micro-batches or more padding: the noise of float32. Needs the extra `bench`. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from harness.bench.parity import Difference, difference, record, replay, trl_settings
from harness.bench.recording import save

ROLLOUTS, SEEDS = 5, range(5)


def table() -> None:
    """One line per seed, as in tests/parity/README.md."""
    print("| seed | | of the movement | of the weights | largest |\n|---|---|---|---|---|")
    for seed in SEEDS:
        settings = trl_settings(rollouts=ROLLOUTS, seed=seed)
        found = record(settings)
        _line(seed, "ours from TRL", difference(replay(found).after, found.after, found.before))
        others = {"two micro-batches": {"accumulation": 2}, "more padding": {"pad_to_multiple_of": 24}}
        for name, change in others.items():
            again = record(replace(settings, **change))
            _line(seed, f"TRL with {name} from TRL", difference(again.after, found.after, found.before))


def _line(seed: int, what: str, apart: Difference) -> None:
    print(f"| {seed} | {what} | {apart.of_movement:.1e} | {apart.of_weights:.1e} | {apart.largest:.1e} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("target", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.target is not None:
        save(record(trl_settings(rollouts=ROLLOUTS, seed=given.seed)), given.target)
        print(f"wrote {given.target} ({given.target.stat().st_size / 1e6:.1f} MB)")
    if given.table or given.target is None:
        table()


if __name__ == "__main__":
    main()
