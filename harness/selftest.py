"""What the validity checks judge, measured on a run's own task, model, sampler and trainer. Nothing is judged here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch

from harness.assemble import Assembly
from harness.core.algorithm import Algorithm
from harness.core.ports import Response, SingleTurnTask, Split, Task
from harness.core.shapes import Float, Tensor
from harness.core.types import Done, Grade, Prompt, RolloutBatch, RolloutGroup, Trajectory
from harness.monitor.mismatch import mismatch_metrics
from harness.monitor.numbers import numbers
from harness.monitor.sampled import count_sampled
from harness.rollout.collate import collate
from harness.rollout.episodes import FULL
from harness.rollout.order import MAIN, train_prompts
from harness.train.networks import Networks, as_rows, micro_batches, policy_logps
from harness.train.prepare import routing_for
from harness.validity.first import FirstBatch
from harness.validity.start import Ends, Golds, LogpGap, PromptCheck, Surprise, VerifierCases

STREAM = 104_729  # opens the self-test's random stream, apart from training and evaluation
PROMPTS, SAMPLES = 8, 8
TOKENS = 128  # longest response of the self-test
ITEMS = 4  # per split, for verifier and prompts
GOLDS, GOLDS_S = 200, 20.0  # stored answers graded at most, and seconds after which no further item is made
GOLDS_AT_ONCE = 32  # graded between two looks at the clock
POSITIVE = 1e-4  # what rounding may add to a log-prob of 0
NUDGE = 0.05  # of the log-temperature, for a derivative


def items_of(task: Task) -> list[Prompt]:
    """A few items of the train and the validation split."""
    splits: tuple[Split, ...] = ("train", "validation")
    sizes = {split: task.info.sizes.get(split) for split in splits}
    counts = {split: ITEMS if size is None else min(ITEMS, size) for split, size in sizes.items()}
    return [task.item(split, i) for split, count in counts.items() for i in range(count)]


def verifier_cases(parts: Assembly, items: Sequence[Prompt]) -> VerifierCases:
    """Grades the task's known right and wrong responses, the right ones also after this model's tokenizer."""
    counts: dict[str, Any] = {}
    example: str | None = None
    try:
        for item in items:
            for text, correct in parts.task.verifier.self_test_cases(item):
                verdict = _graded(parts.task.verifier, item, text)
                if verdict is None:
                    continue
                fault = _fault(parts, item, text, correct, verdict)
                for kind in ("right" if correct else "wrong", fault):
                    if kind is not None:
                        counts[kind] = counts.get(kind, 0) + 1
                if fault is not None:
                    example = example or f"{text!r} to the prompt {_shown(parts, item)}"
        stored = golds(parts.task.verifier)
    except Exception as error:  # whatever a plug-in's grader raises would end the run later
        return VerifierCases(**counts, error=f"{type(error).__name__}: {error}")
    return VerifierCases(**counts, example=example, golds=stored)


def golds(task: Task, most: int = GOLDS, seconds: float = GOLDS_S) -> Golds:
    """Stored answers of items of all splits, each graded for its own item and for one with another answer.

    `seconds` bound the making of items, and again the grading: some generators and their verifiers take minutes.
    """
    pairs = _stored(task, most, time.monotonic() + seconds)
    others = [next((g for _, g in pairs[i + 1 :] + pairs[:i] if g != gold), None) for i, (_, gold) in enumerate(pairs)]
    until, own, other = time.monotonic() + seconds, list[Grade](), list[Grade]()
    for first in range(0, len(pairs), GOLDS_AT_ONCE):
        if first and time.monotonic() > until:
            break
        chosen = range(first, min(first + GOLDS_AT_ONCE, len(pairs)))
        own += _verdicts(task, [pairs[i] for i in chosen])
        other += _verdicts(task, [(pairs[i][0], text) for i in chosen if (text := others[i]) is not None])
    bad = next((text for (_, text), grade in zip(pairs, own, strict=False) if not grade.correct), None)
    return Golds(
        items=len(own),
        refused=sum(not grade.correct for grade in own),
        swapped=len(other),
        accepted=sum(grade.correct for grade in other),
        self_testable=task.info.self_testable,
        example=bad,
    )


def _stored(task: Task, most: int, until: float) -> list[tuple[Prompt, str]]:
    """The first items of every split, then the next ones, with their stored answers where they have one."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    sizes = {split: task.info.sizes.get(split) for split in splits}
    counts = {split: most if size is None else min(most, size) for split, size in sizes.items()}
    wanted = [(i, split) for split, count in counts.items() for i in range(count)]
    pairs: list[tuple[Prompt, str]] = []
    for i, split in sorted(wanted)[:most]:
        if time.monotonic() > until:
            break
        item = task.item(split, i)
        gold = task.gold(item)
        if gold is not None:
            pairs.append((item, gold))
    return pairs


def _verdicts(task: Task, pairs: Sequence[tuple[Prompt, str]]) -> list[Grade]:
    if isinstance(task, SingleTurnTask):
        return task.grade_many([Response(prompt=p, text=text, finish_reason="stop") for p, text in pairs])
    found = (_graded(task, p, text) for p, text in pairs)
    return [grade for grade in found if grade is not None]


def _fault(parts: Assembly, item: Prompt, text: str, correct: bool, verdict: Grade) -> str | None:
    """Which expectation a known response's grade breaks."""
    info = parts.task.verifier.info
    low, high = info.reward_range
    inside = math.isfinite(verdict.score) and low <= verdict.score <= high
    if not inside or verdict.correct != (verdict.score >= info.threshold):
        return "inconsistent"
    if verdict.correct != correct:
        return "refused" if correct else "accepted"
    if not correct:
        return None
    again = _graded(parts.task.verifier, item, parts.codec.decode(parts.codec.encode_text(text)))
    return None if again is not None and again.correct else "unspeakable"


def _graded(task: Task, item: Prompt, text: str) -> Grade | None:
    """The grade of a finished response; None where the episode goes on."""
    _, reply = task.step(task.start(item), text, "stop")
    return reply.grade if isinstance(reply, Done) else None


def _shown(parts: Assembly, item: Prompt) -> str:
    return repr(parts.codec.render(item.messages)[-80:])


def prompts(parts: Assembly, items: Sequence[Prompt]) -> PromptCheck:
    """Reads prompts back from their tokens, white space and one start token aside."""
    begin, end_ids = parts.codec.start_id, parts.model.eos_ids
    faults: dict[str, list[Prompt]] = {"altered": [], "doubled_start": [], "ended": []}
    for item in items:
        ids, text = parts.codec.encode(item.messages), _squeezed(parts.codec.render(item.messages))
        body = ids[1:] if ids[0] == begin else ids
        if begin is not None and ids[:2] == (begin, begin):
            faults["doubled_start"].append(item)
        elif text not in (_squeezed(parts.codec.read_back(i)) for i in (ids, body)):
            faults["altered"].append(item)
        if ids[-1] in end_ids:
            faults["ended"].append(item)
    odd = next((item for found in faults.values() for item in found), None)
    return PromptCheck(
        prompts=len(items),
        example=None if odd is None else _shown(parts, odd),
        **{name: len(found) for name, found in faults.items()},
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def sample(parts: Assembly, limit: int) -> list[RolloutGroup]:
    """Responses to the first train prompts, from a random stream of their own; global random numbers stay untouched.

    Like those of evaluations, their tokens are charged to no budget.
    """
    chosen = train_prompts(parts.task, parts.spec.seed, MAIN, 0, PROMPTS)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        collector = replace(parts.collector, max_new_tokens=limit)
        return collector.collect(chosen, SAMPLES, (STREAM, parts.spec.seed)).groups


def recomputed(groups: Sequence[RolloutGroup], parts: Assembly) -> tuple[LogpGap, Surprise]:
    """The trainer's log-probs and entropies of sampled tokens, at the recipe's temperature, against the sampler's.

    Var(-log p) of a position is dH / d ln T, here a central difference of the entropies at two temperatures.
    """
    batch = collate(groups, parts.spec.backend.device)
    nets = parts.trainer.nets
    logp, entropy = _trainer(batch, nets, parts.algorithm)
    warm, cold = (
        _trainer(batch, replace(nets, temperature=nets.temperature * math.exp(d)), parts.algorithm)[1]
        for d in (NUDGE, -NUDGE)
    )
    behaviour = batch.behaviour_logp[batch.mask]
    bad = int((~behaviour.isfinite() | (behaviour > POSITIVE)).sum())
    sampled, exact = -logp[batch.mask].double(), entropy[batch.mask].double()
    spread = (warm - cold)[batch.mask].double() / (2 * NUDGE)
    return gap_of(numbers(mismatch_metrics([(logp, batch.behaviour_logp, batch.mask)])), bad), Surprise(
        tokens=sampled.numel(),
        sampled=float(sampled.mean()),
        exact=float(exact.mean()),
        variance=float((sampled - exact).var()) if sampled.numel() > 1 else 0.0,
        expected_variance=float(spread.mean()),
    )


@torch.no_grad()
def _trainer(
    batch: RolloutBatch, nets: Networks, algorithm: Algorithm
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Log-probs of a batch's tokens and entropies of their positions, as an update has them; 0 where masked."""
    rows = as_rows(batch, nets.pad_id)
    routing = routing_for(batch, rows, algorithm, nets)
    follow = routing.recording() if routing is not None and routing.mode == "r3" else None
    logp, entropy = torch.zeros_like(batch.behaviour_logp), torch.zeros_like(batch.behaviour_logp)
    for micro in micro_batches(rows, range(batch.num_rows), nets.micro_batch_tokens):
        new, exact = policy_logps(nets, nets.policy, micro, with_entropy=True, follow=follow)
        assert exact is not None
        logp[micro.rows, : new.shape[1]], entropy[micro.rows, : new.shape[1]] = new, exact
    return logp, entropy


def gap_of(row: Mapping[str, Any], nonfinite: int = 0) -> LogpGap:
    """The gap from `mismatch/*` values; what is missing counts as 0 tokens."""
    return LogpGap(
        tokens=int(row.get("mismatch/n") or 0),
        mean=row.get("mismatch/abs_dlogp_mean") or 0.0,
        max=row.get("mismatch/abs_dlogp_max") or 0.0,
        k3=row.get("mismatch/k3") or 0.0,
        nonfinite=nonfinite,
    )


def ends(groups: Sequence[RolloutGroup], parts: Assembly, limit: int) -> Ends:
    """How sampled responses end, against what their finish reasons say."""
    end_ids, stop = set(parts.model.eos_ids), parts.spec.task.template.stop
    rows = [t for g in groups for t in g.trajectories]

    def stopped(t: Trajectory) -> bool:
        return bool(end_ids & set(t.response_ids[-1:])) or any(s in t.text for s in stop)

    def goes_on(t: Trajectory) -> bool:
        """Whether the policy wrote on behind an end token, in the same turn."""
        inside = zip(t.response_ids, t.loss_mask, (*t.loss_mask[1:], False), strict=True)
        return any(mine and more and token in end_ids for token, mine, more in inside)

    def early(t: Trajectory) -> bool:
        turn = len(list(takewhile(bool, reversed(t.loss_mask))))  # tokens of the last one
        return t.grade.why != FULL and (stopped(t) or turn < limit)

    faults = {
        "without_end": [t for t in rows if t.finish_reason == "stop" and not stopped(t)],
        "beyond_end": [t for t in rows if goes_on(t)],
        "early": [t for t in rows if t.finish_reason == "length" and early(t)],
    }
    odd = next((t for found in faults.values() for t in found), None)
    return Ends(
        responses=len(rows),
        example=None if odd is None else f"token ids ending in {list(odd.response_ids[-4:])}",
        **{name: len(found) for name, found in faults.items()},
    )


def first_batch(groups: Sequence[RolloutGroup], *, fresh: bool) -> FirstBatch:
    """Shares over all that was sampled for the first rollout batch."""
    rows = [t for g in groups for t in g.trajectories]
    counts = count_sampled(groups)
    wide = [g.trajectories for g in groups if len(g.trajectories) > 1]
    told = all(t.grade.extracted is not None for t in rows if t.grade.correct)  # some tasks never say what they read
    return FirstBatch(
        responses=len(rows),
        truncated=_share(t.finish_reason == "length" for t in rows),
        empty=_share(t.finish_reason == "stop" and t.num_tokens <= 1 for t in rows),
        unreadable=_share(t.grade.extracted is None for t in rows) if told else 0.0,
        ungraded=_share(t.grade.failed for t in rows),
        dead=counts.zero_var,
        dead_wrong=counts.zero_var_all0,
        dead_right=counts.zero_var_all1,
        clones=_share(len({t.response_ids for t in g}) == 1 for g in wide) if wide else None,
        clones_expected=_share(math.exp(sum(g[0].logp) * (len(g) - 1)) for g in wide) if wide else None,
        spread=bool(counts.reward_std),
        fresh=fresh,
    )


def _share(found: Iterable[float]) -> float:
    listed = [float(x) for x in found]
    return sum(listed) / len(listed) if listed else 0.0
