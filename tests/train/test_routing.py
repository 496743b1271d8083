"""Routing Replay through the whole update: exact ratios, exact gradients, no silent fall-back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

from harness.assemble import Assembly, assemble
from harness.core.errors import UsageError
from harness.core.routing import UNKNOWN
from harness.core.spec import BackendSpec, EngineSpec, ModelSpec, TaskSpec, UpdateSpec
from harness.models.routers import RULES, Routers, routers_of
from harness.selftest import recomputed
from harness.train.loop import Progress, one_step
from harness.train.networks import no_grad_logps
from harness.train.prepare import Prepared, prepare
from harness.train.update import old_logps, plan_updates, update
from tests.fakes.small_moes import MOES, SMALL, folder
from tests.fakes.small_runs import run_spec
from tests.train.test_steps import STILL
from tests.train.test_update_choices import PLAIN, relative

CHOICES: list[dict[str, bool]] = [
    {},
    {"share_prompts": True},
    {"checkpoint_activations": True},
    {"share_prompts": True, "checkpoint_activations": True, "reuse_forward": True, "sort_by_length": True},
]
NOISE = 0.05  # of the weights' change between recording and replay: enough to change routes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moes")


def assembled(
    models: Path, family: str, mode: str, choices: dict[str, bool] | None = None, arm: str = "grpo", **changes: Any
) -> Assembly:
    backend = BackendSpec(update=UpdateSpec.model_validate({**PLAIN, **(choices or {})}))
    recipe = {"prompts_per_step": 4, "grad_clip": 1e9, "max_new_tokens": 12, "micro_batch_tokens": 200}
    spec = run_spec(arm, **({"recipe": recipe} | changes))
    spec = spec.model_copy(
        update={
            "backend": backend,
            "model": ModelSpec(name=str(folder(family, models))),
            "overrides": {**spec.overrides, "routing_replay": mode},
        }
    )
    return assemble(spec)


def batch(parts: Assembly) -> Prepared:
    """With advantages everywhere: a random model is never right."""
    t = parts.trainer
    gathered = t.gather(t.algorithm, t.recipe, Progress())
    rows = t.collate(gathered.groups)
    rows = replace(rows, reward=torch.arange(rows.num_rows) % 3 / 2)
    return prepare(rows, t.algorithm, t.nets, t.facts, (0, 0), ())


def updated(parts: Assembly, ready: Prepared, *, noise: float = 0.0) -> list[Any]:
    """Traces of a whole plan; the weights move between the pass that records and the updates."""
    nets = parts.trainer.nets
    plan = plan_updates(ready, parts.algorithm, (0,))
    old = old_logps(ready, plan, parts.algorithm, nets).clone()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in nets.policy.parameters():
            p += noise * p.std() * torch.randn(p.shape, generator=generator) if p.numel() > 1 else 0.0
    steps = update(ready, parts.algorithm, nets, parts.optimizers, STILL, old, plan, width=12)
    return [s.policy for s in steps if s.policy is not None]


def pieces_of(parts: Assembly, tokens: int) -> Assembly:
    nets = replace(parts.trainer.nets, micro_batch_tokens=tokens)
    return replace(parts, trainer=replace(parts.trainer, nets=nets))


def grads(parts: Assembly) -> list[Tensor]:
    return [p.grad for p in parts.trainer.nets.policy.parameters() if p.grad is not None]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "+".join(c) or "plain")
@pytest.mark.parametrize("family", MOES)
def test_at_unchanged_weights_every_ratio_is_exactly_one(models: Path, family: str, choices: dict[str, bool]) -> None:
    """With one partition for both passes: a row at a time, since rounding depends on what else is in a batch."""
    parts = pieces_of(assembled(models, family, "r2", choices), 1)
    traces = updated(parts, batch(parts))
    assert len(traces) > 1
    for trace in traces:
        assert torch.equal(trace.logp[trace.mask], trace.old_logp[trace.mask])


@pytest.mark.parametrize("family", MOES)
def test_the_samplers_routes_give_the_samplers_log_probs(models: Path, family: str) -> None:
    parts = assembled(models, family, "r3", {"share_prompts": True})
    ready = batch(parts)
    for trace in updated(parts, ready):
        gap = (trace.old_logp - trace.behaviour_logp)[trace.mask].abs()
        assert float(gap.max()) <= 1e-4
        assert float((trace.logp - trace.behaviour_logp)[trace.mask].abs().max()) <= 1e-4
    routing = ready.routing
    assert routing is not None
    assert routing.sampled is not None
    seen = routing.old.experts[routing.response]
    assert float((seen != UNKNOWN).float().mean()) == 1.0
    same = (seen.sort(-1).values == routing.sampled.experts[routing.response].sort(-1).values).float().mean()
    assert float(same) > 0.999, "natural choices of engine and trainer agree but for ties"


@contextmanager
def fixed_routes(policy: nn.Module, experts: Tensor) -> Iterator[None]:
    """An independent replay: gates of one row's tokens from the live logits, for the models normalised after top-k."""
    routers: Any = parts_of(policy)
    handles = []
    for layer, module in enumerate(routers):

        def hook(module: nn.Module, given: Any, output: Any, layer: int = layer) -> Any:
            logits = output[0]
            chosen = logits.float().softmax(-1).gather(1, experts[:, layer].long())
            if getattr(module, "norm_topk_prob", True):
                chosen = chosen / chosen.sum(-1, keepdim=True)
            return logits, chosen.to(logits.dtype), experts[:, layer].long()

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(policy: Any) -> list[nn.Module]:
    return [m for m in policy.get_decoder().modules() if type(m).__name__.endswith("TopKRouter")]


@pytest.mark.parametrize("mode", ["r2", "r3"])
@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "mixtral"])
def test_log_probs_of_a_replay_are_those_of_an_independent_one(models: Path, family: str, mode: str) -> None:
    parts = assembled(models, family, mode, {"share_prompts": True})
    ready = batch(parts)
    traces = updated(parts, ready, noise=NOISE)
    assert ready.routing is not None
    book = ready.routing.old if mode == "r2" else ready.routing.sampled
    assert book is not None
    nets = parts.trainer.nets
    natural = no_grad_logps(nets, nets.policy, ready.rows, range(ready.batch.num_rows))
    want = torch.zeros_like(natural)
    for row, prompt in enumerate(ready.batch.prompt_ids):
        ids = [*prompt, *ready.batch.trajectories[row].response_ids]
        with fixed_routes(nets.policy, book.experts[row, : len(ids) - 1]), torch.no_grad():
            logits = nets.policy(input_ids=torch.tensor([ids[:-1]])).logits[0].float()
        logp = (logits / nets.temperature).log_softmax(-1)[len(prompt) - 1 :]
        answer = torch.tensor(ids[len(prompt) :])
        want[row, : len(answer)] = logp.gather(-1, answer[:, None])[:, 0]
    found = torch.cat([t.logp[t.mask] for t in traces]).sort().values
    torch.testing.assert_close(found, want[ready.mask].sort().values, atol=2e-5, rtol=1e-4)
    assert float((natural - want)[ready.mask].abs().max()) > 1e-3, "free routes would have been others"


@pytest.mark.parametrize("mode", ["off", "r2", "r3"])
@pytest.mark.parametrize("family", MOES)
def test_the_gradient_is_that_of_the_plain_path(models: Path, family: str, mode: str) -> None:
    """Shared prompts, recomputed activations and any split into micro-batches; the router keeps its share."""
    plain = assembled(models, family, mode)
    updated(plain, batch(plain), noise=NOISE)
    want = grads(plain)
    routers = [p.grad for m in parts_of(plain.trainer.nets.policy) for p in m.parameters() if p.grad is not None]
    assert family == "glm4_moe" or (routers and all(float(g.abs().max()) > 0 for g in routers))
    for choices in CHOICES[1:]:
        for tokens in (10**9, 60):
            parts = pieces_of(assembled(models, family, mode, choices), tokens)
            updated(parts, batch(parts), noise=NOISE)
            assert relative(grads(parts), want) < 2e-5, (choices, tokens)


@pytest.mark.parametrize("mode", ["off", "r2", "r3"])
@pytest.mark.parametrize("arm", ["ppo", "gspo", "gfpo", "dapo"])
def test_every_algorithm_makes_a_step_under_every_mode(models: Path, arm: str, mode: str) -> None:
    parts = assembled(models, "mixtral", mode, {"share_prompts": True}, arm=arm)
    outcome = one_step(parts.trainer, Progress(step=50), 0.0)
    assert outcome.progress.step == 51


def test_a_game_of_several_turns_replays_the_samplers_routes(models: Path) -> None:
    """Replies are read, so they have routes; each token keeps the one that it took first."""
    spec = run_spec("grpo", overrides={"routing_replay": "r3"}, recipe={"prompts_per_step": 4, "max_new_tokens": 6})
    named = {"model": ModelSpec(name=str(folder("mixtral", models))), "task": TaskSpec(name="guess")}
    spec = spec.model_copy(update=named)
    parts = assemble(spec)
    ready = batch(parts)
    assert any(len(t.turns) > 1 for t in ready.batch.trajectories)
    assert ready.routing is not None
    assert not bool(ready.mask.all())
    for trace in updated(parts, ready):
        assert float((trace.logp - trace.behaviour_logp)[trace.mask].abs().max()) <= 1e-4


def test_the_self_test_sees_the_log_probs_that_an_update_will_have(models: Path) -> None:
    """Rollouts in bfloat16 flip choices; under r3 the trainer takes the same ones, and little of the gap is left."""
    gaps = {}
    for mode in ("off", "r3"):
        spec = assembled(models, "qwen3_moe", mode).spec
        engine = spec.backend.model_copy(update={"engine": EngineSpec(dtype="bfloat16")})
        parts = assemble(spec.model_copy(update={"backend": engine}))
        groups = parts.trainer.gather(parts.algorithm, parts.trainer.recipe, Progress()).groups
        gaps[mode] = recomputed(groups, parts)[0]
    assert gaps["r3"].tokens == gaps["off"].tokens > 50
    assert gaps["r3"].k3 < gaps["off"].k3 / 2


def test_modes_by_default(models: Path) -> None:
    modes = {}
    for arm in ("grpo", "gspo"):
        spec = run_spec(arm).model_copy(update={"model": ModelSpec(name=str(folder("mixtral", models)))})
        parts = assemble(spec)
        ready = batch(parts)
        assert ready.routing is not None
        modes[arm] = ready.routing.mode
    assert modes == {"grpo": "r2", "gspo": "off"}


def test_a_replay_of_a_dense_model_is_refused() -> None:
    with pytest.raises(UsageError, match="dense") as error:
        assemble(run_spec("grpo", overrides={"routing_replay": "r2"}))
    assert "routing_replay=off" in error.value.instead


def test_missing_and_shifted_routes_are_refused(models: Path) -> None:
    parts = assembled(models, "mixtral", "r3")
    t = parts.trainer
    rows = t.collate(t.gather(t.algorithm, t.recipe, Progress()).groups)
    first = rows.trajectories[0]
    assert first.routes is not None
    for wrong, said in (
        (None, "without routes"),
        (first.routes[1:], "do not belong"),
        (first.routes.masked_fill(torch.arange(len(first.routes))[:, None, None] == 3, UNKNOWN), "position 3 of row 0"),
    ):
        spoiled = replace(rows, trajectories=(replace(first, routes=wrong), *rows.trajectories[1:]))
        with pytest.raises(UsageError) as error:
            updated(parts, prepare(spoiled, t.algorithm, t.nets, t.facts, (0, 0), ()))
        assert said in f"{error.value.what} {error.value.why}"


def test_a_router_that_no_rule_explains_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    native = MixtralTopKRouter.forward

    def squared(self: Any, tokens: Tensor) -> Any:
        logits, gates, experts = native(self, tokens)
        return logits, gates.square(), experts

    monkeypatch.setattr(MixtralTopKRouter, "forward", squared)
    parts = assembled(models, "mixtral", "off")
    batch(parts)
    with pytest.raises(UsageError, match="MixtralTopKRouter") as error:
        updated(p := assembled(models, "mixtral", "r2"), batch(p))
    assert "RULES['MixtralTopKRouter']" in error.value.instead


def test_routers_of_another_kind_are_named_and_trained_with_free_routes() -> None:
    """GraniteMoE's return sorted tokens and sizes: nothing that says which expert a token goes to."""
    options = {**SMALL, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = GraniteMoeForCausalLM(GraniteMoeConfig(**options))
    assert routers_of(model) is None
    with pytest.raises(UsageError, match="not GraniteMoe"):
        routers_of(model, needed=True)


def test_registered_rules_come_before_trials(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.models.routers import Rule
    from tests.fakes.small_moes import build

    monkeypatch.setitem(RULES, "MixtralTopKRouter", Rule(score="sigmoid", normalise=False))
    routers = Routers(build("mixtral"))
    assert (routers.num_layers, routers.num_experts, routers.top_k) == (2, 4, 2)
