"""Checks before the first update: verifier, prompt, sampler against trainer, ends of responses, reward information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

from harness.core.results import Finding, Validity
from harness.validity.limits import (
    GAPS,
    GOLD_MISJUDGED,
    SURPRISE_INVALID,
    SURPRISE_WARN,
    Precision,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Golds:
    """How a task's grader judged stored answers, each for its own item and for another one."""

    items: int = 0  # stored answers graded; 0: the task cannot tell any
    refused: int = 0  # of which not correct
    swapped: int = 0  # graded for an item with another answer
    accepted: int = 0  # of which correct
    self_testable: bool = True  # False: the task declares that its stored answers prove nothing
    example: str | None = None  # the first that was refused

    @property
    def misjudged(self) -> float:
        """The larger of both shares."""
        return max(self.refused / max(1, self.items), self.accepted / max(1, self.swapped))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierCases:
    """How a task's grader judged responses whose verdict is known."""

    right: int = 0  # known right responses graded
    refused: int = 0  # of which graded wrong
    wrong: int = 0  # known wrong responses graded
    accepted: int = 0  # of which graded right
    inconsistent: int = 0  # grades outside the declared range, not finite, or at odds with the threshold
    unspeakable: int = 0  # right responses graded wrong once they have been tokens of this model
    error: str | None = None  # what the grader raised
    example: str | None = None  # the first case that failed
    golds: Golds = Golds()


def verifier(found: VerifierCases) -> Finding:
    """A grader that fails known cases makes every score meaningless."""
    stored = found.golds
    counts = {k: float(v) for k, v in asdict(found).items() if isinstance(v, int)}
    counts |= {f"gold_{k}": float(getattr(stored, k)) for k in ("items", "refused", "swapped", "accepted")}
    shown = f", e.g. {found.example}" if found.example else ""
    words = (
        f"{found.refused} of {found.right} right responses refused, "
        f"{found.accepted} of {found.wrong} wrong ones accepted"
    )
    if found.inconsistent:
        words += f", {found.inconsistent} grades outside the declared range or at odds with the threshold"
    say = partial(Finding, check="verifier", limit="no known case misjudged", values=counts)
    if found.error is not None:
        why = "The grader fails on a response whose verdict is known."
        return say(level="INVALID", measured=f"it raised {found.error}", why=why, advice="Correct the task's grader.")
    if found.refused or found.accepted or found.inconsistent:
        return say(
            level="INVALID",
            measured=words + shown,
            why="The grader misjudges responses whose verdict is known, so no score means anything.",
            advice="Correct the task's grader, its answers, or how the answer is read out of a response.",
        )
    if stored.misjudged > GOLD_MISJUDGED:
        return _golds(stored, partial(say, limit=f"at most {GOLD_MISJUDGED:.0%} of stored answers misjudged"))
    if found.unspeakable:
        return say(
            level="INVALID" if found.unspeakable == found.right else "WARN",
            measured=f"{found.unspeakable} of {found.right} right responses are graded wrong once they have been "
            f"tokens of this model{shown}",
            why="The model cannot write these answers so that the grader reads them.",
            advice="Use an answer format without special tokens, or another tokenizer.",
        )
    if not stored.self_testable and not stored.items:
        return _golds(stored, say)
    if stored.items:
        words += (
            f"; {stored.items} stored answers, {stored.refused} graded wrong, {stored.accepted} right for another item"
        )
    if not found.right + found.wrong + stored.items:
        return say(level="PASS", measured="not declared", why="The task declares no responses with a known verdict.")
    if not found.right + stored.items:
        return say(level="PASS", measured=words, why="The task declares known wrong responses only; all are refused.")
    return say(level="PASS", measured=words, why="All known responses are judged as they should be.")


def _golds(found: Golds, say: partial[Finding]) -> Finding:
    """A task whose stored answers are not its own right answers: a fault, unless it is known for that."""
    measured = (
        f"{found.refused} of {found.items} stored answers graded wrong, {found.accepted} of {found.swapped} "
        f"graded right for another item" + (f", e.g. {found.example!r} refused" if found.example else "")
    )
    if found.self_testable:
        return say(
            level="INVALID",
            measured=measured,
            why="The grader misjudges the data set's own answers, so no score means anything.",
            advice="Correct the answers, or choose how they are compared (-t match=...).",
        )
    return say(
        level="WARN",
        measured=measured,
        why="The task's stored answers do not tell whether its grader works: they are not the only right ones.",
        advice="Read some responses with their grades in samples.jsonl before you trust scores.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCheck:
    """What became of prompts on their way to tokens."""

    prompts: int
    altered: int = 0  # whose tokens do not read back as the text, white space aside
    doubled_start: int = 0  # that begin with two start tokens
    ended: int = 0  # whose last token ends a response
    example: str | None = None


def prompt(found: PromptCheck) -> Finding:
    """The template's text must survive as tokens: one start token, no end token, nothing lost."""
    problems = {
        "do not read back as the prompt": found.altered,
        "begin with two start tokens": found.doubled_start,
        "end with an end-of-sequence token": found.ended,
    }
    values = {k: float(v) for k, v in asdict(found).items() if isinstance(v, int)}
    say = partial(Finding, check="prompt", limit="nothing lost or added", values=values)
    if not any(problems.values()):
        measured = f"{found.prompts} prompts read back from their tokens"
        return say(level="PASS", measured=measured, why="The model sees the prompts as the template writes them.")
    return say(
        level="WARN",
        measured=_listed(problems, f"of {found.prompts} prompts ", found.example),
        why="The model sees something else than the template's text.",
        advice="Look at the first prompt of `harness compare --dry-run`; choose another --template.",
    )


def _listed(problems: Mapping[str, int], before: str, example: str | None) -> str:
    words = "; ".join(f"{count} {what}" for what, count in problems.items() if count)
    return f"{before}{words}" + (f", e.g. {example}" if example else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogpGap:
    """Trainer against sampler on the same tokens under the same weights, in nats."""

    tokens: int
    mean: float  # of |e|
    max: float
    k3: float
    nonfinite: int = 0  # log-probs that are no number, or positive


def precision_of(sampler: str, trainer: str) -> Precision:
    """Which limits hold for these two dtypes."""
    if sampler == "int8":
        return "int8"
    if sampler != trainer:
        return "mixed"
    names: dict[str, Precision] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    return names[trainer]


def sampler_trainer(found: LogpGap, precision: Precision, check: str = "sampler-trainer") -> Finding:
    """|e| is rounding where both see the same weights, tokens and temperature; more is a mistake of the set-up."""
    limits = GAPS[precision]
    measured = f"|dlogp| {found.mean:.2g} on average, {found.max:.2g} at most over {found.tokens} tokens, {precision}"
    if found.nonfinite:
        measured += f"; {found.nonfinite} log-probs of the sampler are no log-probs"
    say = partial(Finding, check=check, measured=measured, values={k: float(v) for k, v in asdict(found).items()})
    hard = _bound(limits.mean_invalid, limits.max_invalid)
    beyond = found.mean > limits.mean_invalid or found.max > (limits.max_invalid or found.max)
    if beyond or found.nonfinite or found.k3 > limits.k3_invalid:
        return say(
            level="INVALID",
            limit=hard,
            why=f"Sampler and trainer disagree by more than rounding explains: {limits.reason}.",
            advice="Look for a temperature that the engine leaves out of its log-probs, another template or start "
            "token, weights that were not synchronised, or another dtype.",
        )
    if found.mean > limits.mean_warn or found.max > (limits.max_warn or found.max):
        return say(
            level="WARN",
            limit=_bound(limits.mean_warn, limits.max_warn),
            why=f"The behaviour policy is not quite the policy that is trained: {limits.reason}.",
            advice="Compare arms of one engine only; a rollout correction takes the difference into account.",
        )
    return say(level="PASS", limit=hard, why="Sampler and trainer agree on the same tokens.")


def _bound(mean: float, largest: float | None) -> str:
    return f"{mean:g} on average" + ("" if largest is None else f", {largest:g} at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surprise:
    """-log p of sampled tokens against their exact entropy, both by the trainer, in nats."""

    tokens: int
    sampled: float  # mean -log p
    exact: float  # mean entropy
    variance: float  # of their difference over the tokens
    expected_variance: float  # mean over the positions of Var(-log p) under the policy

    @property
    def z(self) -> float:
        """The difference of the means in standard errors.

        The larger variance counts: a model that is sure of itself shows its rare surprises too seldom, or just once.
        """
        variance = max(self.variance, self.expected_variance, 1e-12)
        return float((self.sampled - self.exact) / (variance / max(1, self.tokens)) ** 0.5)


def sampled_entropy(found: Surprise) -> Finding:
    """Tokens drawn from the policy surprise it, on average, by exactly its entropy."""
    say = partial(
        Finding,
        check="sampled-entropy",
        measured=f"{found.sampled:.3f} nats against an entropy of {found.exact:.3f}, z = {found.z:.1f}",
        values={"tokens": float(found.tokens), "sampled": found.sampled, "exact": found.exact, "z": found.z},
    )
    if abs(found.z) <= SURPRISE_WARN:
        why = "The tokens look drawn from the policy at the recipe's temperature."
        return say(level="PASS", limit=f"|z| <= {SURPRISE_WARN:g}", why=why)
    level: Validity = "INVALID" if abs(found.z) > SURPRISE_INVALID else "WARN"
    kind = "more likely" if found.z < 0 else "less likely"
    return say(
        level=level,
        limit=f"|z| <= {SURPRISE_INVALID if level == 'INVALID' else SURPRISE_WARN:g}",
        why=f"The sampled tokens are {kind} than tokens of the policy at the recipe's temperature.",
        advice="Look for another sampling temperature, top-p, top-k or a repetition penalty in the engine.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How sampled responses end."""

    responses: int
    without_end: int = 0  # "stop", but neither an end token nor a stop string at the end
    beyond_end: int = 0  # tokens after an end token
    early: int = 0  # "length", but shorter than the limit, or with an end
    example: str | None = None


def ends(found: Ends) -> Finding:
    """A finished response keeps its end token, nothing follows it, and only the limit cuts."""
    problems = {
        "finished without an end token or stop string": found.without_end,
        "go on after an end token": found.beyond_end,
        "called cut off, but not by the limit": found.early,
    }
    values = {k: float(v) for k, v in asdict(found).items() if isinstance(v, int)}
    say = partial(Finding, check="ends", limit="every response ends as it says", values=values)
    if not any(problems.values()):
        measured = f"{found.responses} responses end as they say"
        return say(level="PASS", measured=measured, why="The policy is trained on the end token that it samples.")
    return say(
        level="INVALID",
        measured=_listed(problems, f"of {found.responses} responses ", found.example),
        why="End tokens are lost or ignored, so the policy cannot learn when to stop.",
        advice="Compare the end-of-sequence ids of engine, tokenizer and generation config; keep the end token in the "
        "response.",
    )


def reward_information(bracket: str, *, dense: bool) -> Finding:
    """Arms that read rewards for parts of a response stand in the bracket `dense`; controls may stand in either."""
    own = "dense" if dense else "outcome"
    reads = "rewards for parts of a response" if dense else "the outcome only"
    say = partial(
        Finding,
        check="reward-information",
        measured=f"bracket {bracket}, reads {reads}",
        limit="what its bracket knows",
    )
    if bracket in (own, "control"):
        return say(level="PASS", why="The arm is compared with arms that know as much.")
    why = "The arm would be ranked against arms with other reward information."
    return say(level="INVALID", why=why, advice=f"Give it the bracket {own}.")
