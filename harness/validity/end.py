"""The check at the end of a run: did training reach the weights that sample?"""

from __future__ import annotations

from functools import partial

from harness.core.results import Finding


def weights_moved(*, moved: bool | None, updates: int, lr: float) -> Finding:
    """Weights that stay bit-identical through informative updates were never trained; at lr = 0 they must not move.

    `updates`: steps with a learning rate above 0, a contributing row and a finite gradient. `moved` None: not measured.
    """
    state = {None: "not measured", True: "changed", False: "unchanged"}[moved]
    say = partial(
        Finding,
        check="weights-moved",
        measured=f"weights {state}; {updates} steps with informative updates, lr = {lr:g}",
        limit="changed" if lr > 0 else "unchanged",
        values={"updates": float(updates), "lr": lr, "moved": None if moved is None else float(moved)},
    )
    if moved is None:
        return say(level="PASS", why="The run was continued from a checkpoint without this measurement.")
    if lr == 0 and moved:
        why = "The weights changed at learning rate 0."
        return say(level="INVALID", why=why, advice="Look for another writer of the weights.")
    if lr == 0:
        return say(level="PASS", why="A canary at learning rate 0: what its score still changes by is noise.")
    if not moved and updates:
        return say(
            level="INVALID",
            why="No weight of the sampling policy ever changed, although there was something to learn.",
            advice="Look for frozen or disconnected parameters, or a learning rate below the precision of the weights.",
        )
    why = "Training reaches the weights." if moved else "There was no informative update, so nothing had to move."
    return say(level="PASS", why=why)
