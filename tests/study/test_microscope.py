"""The microscope's numbers: by hand, by identity, and against the trainer's own backward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithms.arms import build_arm
from harness.core.algorithm import Algorithm, override
from harness.core.microscope import ArmView, Microscope
from harness.core.spec import Recipe, RunSpec
from harness.microscope.lens import focus, look, weigh
from harness.microscope.recorded import as_batch, read_rollout, take_rows
from harness.microscope.replay import Request, fixture_folder, replay
from harness.microscope.statistics import (
    cosines,
    effective_number,
    inner_products,
    length_bins,
    ratio_ess,
    share_by_bin,
)
from harness.models.load import load
from harness.models.response_logits import token_logps
from harness.train import checkpoint
from harness.train.loop import Progress
from harness.train.networks import Networks, as_rows, no_grad_logps
from harness.train.objective import batch_totals, policy_loss
from harness.train.optimizer import Optimizer
from harness.train.prepare import TaskFacts
from harness.train.update import Optimizers

Tensors = dict[str, torch.Tensor]
SPEC = RunSpec.model_validate_json((fixture_folder() / "spec.json").read_text(encoding="utf-8"))

# Two responses: A = +1 with three tokens, A = -1 with two (the third position is padding and holds garbage).
RATIO = torch.tensor([[1.5, 1.1, 0.9], [0.5, 1.3, 7.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])
ADVANTAGES = torch.tensor([[1.0] * 3, [-1.0] * 3], dtype=torch.float64)


def weights(algorithm: Algorithm) -> tuple[torch.Tensor, torch.Tensor]:
    """(d loss / d logp, any bound active) of the two responses."""
    old = torch.full_like(RATIO, -1.0)
    logp = torch.where(MASK, old + RATIO.log(), float("nan"))
    totals = batch_totals(MASK, torch.tensor([0, 0]))
    found = weigh(
        algorithm, logp=logp, old_logp=old, ref_logp=None, entropy=None, advantages=ADVANTAGES, mask=MASK, totals=totals
    )
    out = found.output
    return found.weight, out.clipped_low | out.clipped_high | out.clipped_dual


def test_grpo_by_hand() -> None:
    """-A r / (n B): 1.5 is above 1.27 with A > 0, 0.5 below 0.8 with A < 0; the others are free."""
    weight, clipped = weights(build_arm("grpo"))
    expected = [[0.0, -1.1 / 6, -0.9 / 6], [0.0, 1.3 / 4, 0.0]]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64))
    assert clipped.tolist() == [[True, False, False], [True, False, False]]


def test_gspo_by_hand() -> None:
    """All tokens of a row share s = (prod r)^(1/n); the narrow range cuts both rows off, a wide one neither."""
    weight, clipped = weights(build_arm("gspo"))
    assert not weight.any()
    assert torch.equal(clipped, MASK)
    wide = override(build_arm("gspo"), {"surrogate.low": 0.5, "surrogate.high": 0.5})
    first, second = -((1.5 * 1.1 * 0.9) ** (1 / 3)) / 6, (0.5 * 1.3) ** 0.5 / 4
    expected = [[first] * 3, [second, second, 0.0]]
    torch.testing.assert_close(weights(wide)[0], torch.tensor(expected, dtype=torch.float64))


def test_dapo_by_hand() -> None:
    """Token mean: every free token has -A r / 5."""
    weight, _ = weights(build_arm("dapo"))
    expected = [[0.0, -1.1 / 5, -0.9 / 5], [0.0, 1.3 / 5, 0.0]]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64))


def test_effective_numbers() -> None:
    assert effective_number(torch.tensor([2.0, -2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_number(torch.tensor([3.0, 1.0])) == pytest.approx(1.6)
    assert effective_number(torch.zeros(4)) == 0.0
    assert ratio_ess(torch.tensor([[3.0, 1.0, 9.0]]), torch.tensor([[True, True, False]])) == pytest.approx(0.8)
    assert ratio_ess(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)) is None


def test_cosines() -> None:
    gradients = [[torch.tensor([1.0, 0.0]), torch.tensor([[1.0]])], [torch.tensor([0.0, 1.0]), torch.tensor([[1.0]])]]
    found = cosines(inner_products([*gradients, [torch.zeros(2), torch.zeros(1, 1)]]))
    assert found[0] == [pytest.approx(1.0), pytest.approx(0.5), None]
    assert found[2] == [None, None, None]


def test_length_bins_ignore_the_order_of_rows() -> None:
    length = torch.tensor([0, *range(1, 21)])
    bins = length_bins(length)
    assert [len(b) for b in bins] == [2] * 10
    assert bins[0] == [1, 2]
    mass = torch.arange(21.0)
    assert share_by_bin(mass, length, bins)[:2] == pytest.approx([3 / 210, 7 / 210])
    tied = torch.full((4,), 5)
    uneven = torch.tensor([4.0, 0.0, 0.0, 0.0])
    assert share_by_bin(uneven, tied, length_bins(tied)) == pytest.approx([0.25] * 4)
    assert share_by_bin(torch.zeros(4), tied, length_bins(tied)) == [0.0] * 4


@pytest.fixture(scope="module")
def seen() -> tuple[Microscope, Tensors]:
    """The bundled batch; GFPO keeps all 16."""
    names = ("grpo", "gspo", "gspo_token", "gfpo", "ppo", "gspo_token_process")
    return replay(Request(folder=fixture_folder(), arms=names, changes={"GFPO:selection.k": 16}))


def cosine(record: Microscope, a: str, b: str) -> float:
    names = [arm.name for arm in record.arms]
    value = record.cosine[names.index(a)][names.index(b)]
    assert value is not None
    return value


def arm(record: Microscope, name: str) -> ArmView:
    [found] = [a for a in record.arms if a.name == name]
    return found


def test_gspo_token_equals_gspo_with_constant_advantages(seen: tuple[Microscope, Tensors]) -> None:
    record, full = seen
    assert cosine(record, "GSPO", "GSPO-token") == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(full["GSPO.weight"], full["GSPO-token.weight"])
    assert torch.equal(full["GSPO.clip"], full["GSPO-token.clip"])
    assert arm(record, "GSPO-token").identical_to == "GSPO"
    assert cosine(record, "GSPO", "GSPO-token process") < 0.999  # per-token advantages are another matter


def test_gfpo_that_keeps_all_is_its_base(seen: tuple[Microscope, Tensors]) -> None:
    record, full = seen
    assert cosine(record, "GRPO", "GFPO") == pytest.approx(1, abs=1e-9)
    assert torch.equal(full["GRPO.weight"], full["GFPO.weight"])
    assert any("equals its base" in note for note in record.notes)


def test_grpo_and_gspo_differ_once_ratios_move(seen: tuple[Microscope, Tensors]) -> None:
    record, full = seen
    assert record.weights.optimizer_steps == 4
    assert record.weights.sampling_gap == pytest.approx(0, abs=1e-5)  # the cold start sampled it
    assert cosine(record, "GRPO", "GSPO") < 0.95
    one, other = arm(record, "GRPO").clip_frac_tokens, arm(record, "GSPO").clip_frac_tokens
    assert one is not None
    assert other is not None
    assert other > one + 0.3
    free = (full["GSPO.clip"] == 0) & (full["GSPO.advantages"] != 0)
    for weight, use in zip(full["GSPO.weight"], free, strict=True):  # one weight per row
        torch.testing.assert_close(weight[use], weight[use][:1].expand(int(use.sum())))
    assert arm(record, "PPO").notes  # says that its critic is all zeros


def stage() -> tuple[Networks, torch.Tensor, TaskFacts]:
    model = load(SPEC.model, seed=0, device="cpu", dtype="float32")
    nets = Networks(
        policy=model.policy, token_logps=token_logps, temperature=1.0, micro_batch_tokens=700, pad_id=model.pad_id,
        reference=load(SPEC.model, seed=1, device="cpu", dtype="float32").policy.requires_grad_(False),
    )  # fmt: skip
    batch = read_rollout(fixture_folder(), 1, 35).batch
    other = load(SPEC.model, seed=2, device="cpu", dtype="float32").policy
    old = no_grad_logps(nets, other, as_rows(batch, model.pad_id), range(batch.num_rows))
    return nets, old, TaskFacts(reward_range=(0.0, 1.0), limit=35)


@pytest.mark.parametrize("name", ["gfpo", "dapo"])
def test_the_gradient_is_that_of_a_plain_backward_pass(name: str) -> None:
    """Published values: KL and entropy in the loss, rows left out; several micro-batches against one."""
    nets, old, facts = stage()
    batch = read_rollout(fixture_folder(), 1, 35).batch
    algorithm = build_arm(name, "published")
    seen_as = focus(name, algorithm, batch, nets, facts, (0, 0), old_logp=old, values=torch.zeros_like(old))
    [sight] = look([seen_as], nets, as_rows(batch, nets.pad_id), old, width=35)
    ready = seen_as.prepared
    assert ready is not None
    flat, entropy = token_logps(
        nets.policy, ready.rows.input_ids, ready.rows.select, temperature=1.0, with_entropy=True
    )
    assert entropy is not None
    empty = torch.zeros(ready.mask.shape)
    out = policy_loss(
        algorithm, logp=empty.masked_scatter(ready.mask, flat), old_logp=old[seen_as.rows], ref_logp=ready.ref_logp,
        entropy=empty.masked_scatter(ready.mask, entropy), advantages=ready.advantages.advantages, mask=ready.mask,
        totals=batch_totals(ready.mask, ready.batch.group, width=35),
    )  # fmt: skip
    direct = torch.autograd.grad(out.loss, list(nets.policy.parameters()))
    for mine, theirs in zip(sight.gradient, direct, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def copied(folder: Path, **changes: torch.Tensor | None) -> Path:
    """The bundled run folder with other tensors; None takes one out."""
    source = fixture_folder()
    tensors = {**load_file(source / "rollouts" / "00000001.safetensors"), **changes}
    (folder / "rollouts").mkdir(parents=True)
    (folder / "spec.json").write_text((source / "spec.json").read_text(encoding="utf-8"), encoding="utf-8")
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "rollouts" / "00000001.safetensors")
    return folder


def test_a_group_without_variance_is_not_admitted_by_dapo(tmp_path: Path) -> None:
    tensors = load_file(fixture_folder() / "rollouts" / "00000001.safetensors")
    first = tensors["group"] == 0
    run = copied(
        tmp_path / "run",
        reward=tensors["reward"].masked_fill(first, 0.0),
        correct=tensors["correct"] & ~first,
        truncated=None,  # as older files have it
        **{"credit.row": None, "credit.end": None, "credit.reward": None},
    )
    record, full = replay(Request(folder=run, arms=("dapo", "grpo")))
    assert arm(record, "DAPO").rows_admitted == 112
    assert "1 of 8 groups" in arm(record, "DAPO").notes[0]
    assert not full["DAPO.weight"][first].any()
    assert arm(record, "GRPO").rows_contributing == 112


def test_a_batch_that_teaches_nothing(tmp_path: Path) -> None:
    """No variance in any group: no step, every ratio 1, gradients of 0 and cosines that do not exist."""
    run = copied(tmp_path / "run", reward=torch.zeros(128), correct=torch.zeros(128, dtype=torch.bool))
    record, _ = replay(Request(folder=run, arms=("grpo", "dapo", "gspo_calibrated")))
    assert [a.name for a in record.arms] == ["GRPO", "DAPO"]
    assert record.weights.optimizer_steps == 0
    assert record.weights.ratio_quantiles == pytest.approx((1, 1, 1, 1, 1), abs=1e-5)
    assert record.cosine == ((None, None), (None, None))
    assert arm(record, "DAPO").rows_admitted == 0
    assert any("moves nothing" in n for n in record.notes)
    assert any("GSPO calibrated is left out" in n for n in record.notes)


def test_a_clip_range_that_does_not_fit_is_a_note() -> None:
    record, _ = replay(Request(folder=fixture_folder(), arms=("grpo", "gspo"), changes={"gspo:surrogate.high": 1e-7}))
    assert record.weights.sd_log_s > 0
    assert [n for n in record.notes if "almost every response is clipped" in n and "GSPO" in n.upper()]


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    """Old log-probs are the recorded ones, so weights that sampled give ratios of 1 and others do not."""
    run = copied(tmp_path / "run")
    for step, seed in ((1, 0), (5, 1)):
        policy = load(SPEC.model, seed=seed, device="cpu", dtype="float32").policy
        optimizers = Optimizers(policy=Optimizer(policy, Recipe.model_validate(SPEC.recipe), 1e-3))
        checkpoint.save(run / "checkpoints", Progress(step=step), optimizers, {})
        record, _ = replay(Request(folder=run, arms=("grpo", "gspo"), at_checkpoint=True))
        assert record.weights.kind == "checkpoint"
        assert f"checkpoint of step {step}," in record.weights.text
        middle = record.weights.ratio_quantiles[1]
        assert middle == pytest.approx(1, abs=1e-4) if seed == 0 else middle < 0.9


def renamed(run: Path, step: int) -> Path:
    """The same folder with its batch recorded at another step."""
    file = run / "rollouts" / "00000001.safetensors"
    file.rename(file.with_name(f"{step:08d}.safetensors"))
    return run


EASY = torch.full((100,), -1.0, dtype=torch.float64)  # against these, every group of the batch is easy: k = 4 of 16


def adaptive(run: Path) -> tuple[int, str]:
    """Rows that adaptive GFPO keeps in a replay, and the note about what it knew."""
    record, _ = replay(Request(folder=run, arms=("grpo", "gfpo_adaptive")))
    [note] = [n for n in record.notes if n.startswith("GFPO adaptive:")]
    return arm(record, "GFPO adaptive").rows_kept, note


def test_the_difficulty_of_a_prompt_needs_what_was_seen_before(tmp_path: Path) -> None:
    """Recorded with the batch; at the first step nothing; else the warm-up's k, which is said."""
    assert adaptive(copied(tmp_path / "first")) == (
        8 * 8, "GFPO adaptive: its selection had seen no prompts before this batch (group_means): k as in its warm-up."
    )  # fmt: skip
    kept, note = adaptive(renamed(copied(tmp_path / "unknown"), 3))
    assert kept == 8 * 8
    assert "does not tell what its selection would know" in note
    assert "k as in its warm-up" in note
    kept, note = adaptive(renamed(copied(tmp_path / "known", **{"selection.group_means": EASY}), 3))
    assert kept == 8 * 4
    assert "as the run recorded them (group_means)" in note
    other = renamed(copied(tmp_path / "other", **{"selection.tdigest_100": EASY}), 3)
    assert "does not tell" in adaptive(other)[1], "another state means nothing to it"


@pytest.mark.parametrize(("step", "kept"), [(2, 8 * 4), (1, 8 * 8)])
def test_a_checkpoint_right_before_the_batch_tells_it_too(tmp_path: Path, step: int, kept: int) -> None:
    run = renamed(copied(tmp_path / "run"), 3)
    policy = load(SPEC.model, seed=0, device="cpu", dtype="float32").policy
    optimizers = Optimizers(policy=Optimizer(policy, Recipe.model_validate(SPEC.recipe), 1e-3))
    progress = Progress(step=step, history=tuple(EASY.tolist()), history_of="group_means")
    checkpoint.save(run / "checkpoints", progress, optimizers, {})
    assert adaptive(run)[0] == kept


def test_responses_of_older_weights_are_told(tmp_path: Path) -> None:
    version = torch.full((128,), 7, dtype=torch.int32)
    version[:16] = 3
    record, _ = replay(Request(folder=copied(tmp_path / "run", policy_version=version), arms=("grpo",)))
    assert any(n.startswith("16 of 128 responses were carried over") for n in record.notes)
    same, _ = replay(Request(folder=fixture_folder(), arms=("grpo",)))
    assert not any("carried over" in n for n in same.notes)


def test_taking_rows_keeps_them_whole() -> None:
    batch = read_rollout(fixture_folder(), 1, 35).batch
    rows = torch.tensor([17, 3, 100])
    part = take_rows(batch, rows)
    assert part.group.tolist() == [1, 0, 2]
    assert part.prompt_ids[2] == batch.prompt_ids[100]
    assert torch.equal(part.response_ids, batch.response_ids[rows])
    assert part.credit is not None
    assert batch.credit is not None
    for place, row in enumerate(rows.tolist()):
        mine = part.credit.reward[part.credit.row == place]
        assert torch.equal(mine, batch.credit.reward[batch.credit.row == row])


def test_truncation_is_told_by_the_limit_where_a_file_does_not_say() -> None:
    tensors = load_file(fixture_folder() / "rollouts" / "00000001.safetensors")
    longest = int(tensors["mask"].sum(1).max())
    del tensors["truncated"]
    assert not as_batch(tensors, longest + 1).truncated.any()
    assert as_batch(tensors, longest).truncated.sum() == (tensors["mask"].sum(1) == longest).sum()


def test_an_arm_that_replays_routes_is_seen_with_free_ones() -> None:
    record, _ = replay(Request(folder=fixture_folder(), arms=("grpo", "grpo_replay_r3")))
    assert [n for n in record.notes if n.startswith("GRPO replay r3: seen with free routes")]
    assert cosine(record, "GRPO", "GRPO replay r3") == pytest.approx(1)
