"""Every rule of honest reporting refuses a report that breaks it, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from harness.report.rules import RULES, ReportRuleError, check_rules

Report = dict[str, Any]


def arm(report: Report, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(a for a in report["arms"] if a["name"] == name)
    return found


def drop_a_run(r: Report) -> None:
    del r["runs"][0]


def forget_the_collapse(r: Report) -> None:
    gspo = arm(r, "GSPO")
    gspo["seeds"] = [s for s in gspo["seeds"] if s["status"] != "collapsed"]


def bare_number(r: Report) -> None:
    arm(r, "DAPO")["score"] |= {"low": None, "high": None, "note": None}


def hide_low_power(r: Report) -> None:
    r["all_pairs"][0] |= {"label": "inconclusive", "p_adjusted": 0.5, "mde": 0.3, "collapse": False}


def claim_equivalence(r: Report) -> None:
    r["comparisons"][0] |= {"label": "equivalent", "p_tost_adjusted": 0.2}


def shrink_the_family(r: Report) -> None:
    r["comparisons"][0]["family"] -= 1


def embolden_a_loser(r: Report) -> None:
    r["groups"][0]["best_set"].append("GRPO")


def pretend_it_was_planned(r: Report) -> None:
    r["comparisons"][0]["exploratory"] = False


def iqm_alone(r: Report) -> None:
    del arm(r, "DAPO")["collapse"]["k"]


def relative_only(r: Report) -> None:
    r["thresholds"][0]["score"] = None


def silent_tuning(r: Report) -> None:
    r["caveats"] = [c for c in r["caveats"] if not c.startswith("Tuning")]


def no_seed(r: Report) -> None:
    del r["provenance"]["bootstrap_seed"]


def forget_failed_runs(r: Report) -> None:
    failed = next(x for x in r["runs"] if x["status"] == "infra_failed")
    r["tally"]["sampled_tokens"] -= failed["sampled_tokens"]


def remove_the_watermark(r: Report) -> None:
    r["study"]["watermark"] = None


def reward_as_score(r: Report) -> None:
    next(p for p in r["panels"] if p["column"].startswith("reward/"))["title"] = "Score"


BREACHES: dict[str, Callable[[Report], None]] = {
    "R1": drop_a_run, "R2": forget_the_collapse, "R3": bare_number, "R4": hide_low_power, "R5": claim_equivalence,
    "R6": shrink_the_family, "R7": embolden_a_loser, "R8": pretend_it_was_planned, "R9": iqm_alone,
    "R10": relative_only, "R11": silent_tuning, "R12": no_seed, "R13": forget_failed_runs,
    "R14": remove_the_watermark, "R15": reward_as_score,
}  # fmt: skip


def test_a_sound_report_passes(report: Report) -> None:
    check_rules(report)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_breach_is_refused_by_name(report: Report, rule: str) -> None:
    broken = copy.deepcopy(report)
    BREACHES[rule](broken)
    with pytest.raises(ReportRuleError, match=rf"rule {rule}: ") as caught:
        check_rules(broken)
    assert caught.value.rule == rule
