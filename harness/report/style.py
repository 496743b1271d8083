"""One colour and one marker per algorithm, the same in every report; legible on light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Okabe and Ito's colour-blind-safe palette, yellow left out (too light on white).
FIXED: Mapping[str, tuple[str, str]] = {
    "grpo": ("#0072B2", "o"),
    "ppo": ("#E69F00", "s"),
    "dapo": ("#009E73", "^"),
    "gspo": ("#D55E00", "D"),
    "gspo_token": ("#CC79A7", "v"),
    "gfpo": ("#56B4E9", "P"),
}
SPARE: Sequence[tuple[str, str]] = (
    ("#8C6BB1", "X"),
    ("#A6761D", "p"),
    ("#66A61E", "*"),
    ("#B2182B", "h"),
    ("#1B7F8C", "<"),
    ("#7A8B2A", ">"),
    ("#5E4FA2", "d"),
    ("#C27C5B", "H"),
)
CONTROL: Sequence[tuple[str, str]] = (("#8A8F98", "x"), ("#A3A8B0", "+"), ("#747A84", "1"))


def assign(arms: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Arm -> colour and marker, from (arm, algorithm, bracket) in the order of the study.

    The first arm of an algorithm takes the algorithm's own; its variants and unknown algorithms take spare ones.
    """
    taken: set[str] = set()
    spare = control = 0
    styles: dict[str, dict[str, str]] = {}
    for name, algorithm, bracket in arms:
        key = algorithm.lower().replace("-", "_")
        if bracket == "control":
            color, marker = CONTROL[control % len(CONTROL)]
            control += 1
        elif key in FIXED and key not in taken:
            taken.add(key)
            color, marker = FIXED[key]
        else:
            color, marker = SPARE[spare % len(SPARE)]
            spare += 1
        styles[name] = {"color": color, "marker": marker, "dash": "dashed" if bracket == "control" else "solid"}
    return styles
