"""All detectors, one type of event per file, in the order in which events of one step are listed."""

from __future__ import annotations

from harness.monitor.detectors.below_base import BelowBase, RewardBelowBase
from harness.monitor.detectors.dead_signal import DeadSignal
from harness.monitor.detectors.degenerate_text import DegenerateText
from harness.monitor.detectors.entropy_collapse import EntropyCollapse
from harness.monitor.detectors.entropy_explosion import EntropyExplosion
from harness.monitor.detectors.expert_collapse import ExpertCollapse
from harness.monitor.detectors.grad_explosion import GradExplosion, GradSpike
from harness.monitor.detectors.kl_blowup import KlBlowup
from harness.monitor.detectors.length_collapse import LengthCollapse
from harness.monitor.detectors.length_explosion import LengthExplosion
from harness.monitor.detectors.mismatch_blowup import MismatchBlowup
from harness.monitor.detectors.noop import Noop
from harness.monitor.detectors.numeric import Numeric
from harness.monitor.detectors.ratio_explosion import RatioExplosion
from harness.monitor.detectors.reward_collapse import RewardCollapse, ScoreCollapse
from harness.monitor.detectors.router_volatility import RouterVolatility
from harness.monitor.detectors.rule import Rule
from harness.monitor.detectors.value_failure import ValueFailure

RULES: tuple[Rule, ...] = (
    Numeric(),
    RewardCollapse(),
    ScoreCollapse(),
    BelowBase(),
    RewardBelowBase(),
    EntropyCollapse(),
    EntropyExplosion(),
    KlBlowup(),
    RatioExplosion(),
    GradExplosion(),
    GradSpike(),
    LengthExplosion(),
    LengthCollapse(),
    DegenerateText(),
    MismatchBlowup(),
    DeadSignal(),
    ExpertCollapse(),
    RouterVolatility(),
    ValueFailure(),
    Noop(),
)
