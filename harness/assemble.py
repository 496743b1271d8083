"""Builds what a RunSpec names: task, model, networks, sampler, optimizers, trainer."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from algorithms.checks import refusals_along
from harness.core.algorithm import Algorithm, replay_mode
from harness.core.errors import UsageError
from harness.core.ports import Sampler, Task
from harness.core.registry import build_task
from harness.core.resolve import resolve
from harness.core.routing import RouterSet
from harness.core.spec import BackendSpec, Recipe, RunSpec
from harness.rollout.collate import collate
from harness.rollout.collect import Collector
from harness.rollout.gather import Gathered, gather
from harness.train.loop import Progress, Trainer
from harness.train.networks import Networks
from harness.train.optimizer import Optimizer
from harness.train.prepare import TaskFacts
from harness.train.update import Optimizers

if TYPE_CHECKING:
    from harness.models.codec import TextCodec
    from harness.models.load import LoadedModel
    from harness.models.rollout_copy import RolloutCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """Everything a run works with."""

    spec: RunSpec
    algorithm: Algorithm
    task: Task
    model: LoadedModel
    codec: TextCodec
    sampler: Sampler
    collector: Collector
    optimizers: Optimizers
    trainer: Trainer
    memory_after_import_mib: float

    def calibrated(self, measured: Mapping[str, float]) -> Assembly:
        """The same with the surrogate's range frozen at what was measured."""
        if "sd_log_s" not in measured:
            return self
        surrogate = self.algorithm.surrogate.calibrated(measured["sd_log_s"])
        algorithm = self.algorithm.model_copy(update={"surrogate": surrogate})
        return replace(self, algorithm=algorithm, trainer=replace(self.trainer, algorithm=algorithm))

    def peak_memory_mib(self) -> float:
        """Peak of the device, or of the process on CPU."""
        if self.spec.backend.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def assemble(spec: RunSpec) -> Assembly:
    """Builds a run's parts; a critic or a reference exists only where a part of the algorithm needs one."""
    from harness.models.codec import TextCodec

    algorithm = resolve(spec)
    task = planned_task(spec)
    refusals_along(algorithm, spec.recipe, spec.schedule, task.info)
    model = load_policy(spec)
    memory = resident_mib() - sum(p.numel() * p.element_size() for p in model.policy.parameters()) / 2**20
    codec = TextCodec(model.tokenizer, spec.task.template)
    routers = load_routers(spec, algorithm, model)
    sampler = build_sampler(spec, model, codec, task, routers)
    collector = Collector(
        task=task,
        sampler=sampler,
        codec=codec,
        max_new_tokens=spec.recipe.max_new_tokens,
        temperature=spec.recipe.temperature,
        context=model.context,
        clock=time.monotonic,
    )
    nets = networks(spec, algorithm, model, routers)
    optimizers = optimizers_of(nets, spec.recipe)

    def gathered(current: Algorithm, recipe: Recipe, progress: Progress) -> Gathered:
        return gather(
            replace(collector, max_new_tokens=recipe.max_new_tokens, temperature=recipe.temperature),
            current,
            wanted=recipe.prompts_per_step * current.prompts_factor,
            seed=spec.seed,
            rollout=progress.step,
            refill_cursor=progress.refill_cursor,
            carried=progress.carried,
            order=None if spec.start is None else spec.start.prompts,
            pool=None if recipe.pool_size is None else (recipe.pool_size, recipe.pool),
        )

    trainer = Trainer(
        algorithm=algorithm,
        recipe=spec.recipe,
        budget=spec.budget,
        schedule=spec.schedule,
        seed=spec.seed,
        nets=nets,
        optimizers=optimizers,
        facts=facts_of(task, spec.recipe),
        gather=gathered,
        collate=lambda groups: collate(groups, spec.backend.device),
        sync=sampler.sync,
        clock=time.monotonic,
    )
    return Assembly(
        spec=spec,
        algorithm=algorithm,
        task=task,
        model=model,
        codec=codec,
        sampler=sampler,
        collector=collector,
        optimizers=optimizers,
        trainer=trainer,
        memory_after_import_mib=memory,
    )


def facts_of(task: Task, recipe: Recipe) -> TaskFacts:
    """What shaping needs to know; a response is at most all turns of an episode long."""
    turns = task.info.max_turns
    return TaskFacts(reward_range=task.info.reward_range, limit=recipe.max_new_tokens * turns, max_turns=turns)


def optimizers_of(nets: Networks, recipe: Recipe) -> Optimizers:
    """One per trained network."""
    return Optimizers(
        policy=Optimizer(nets.policy, recipe, recipe.lr),
        critic=None if nets.critic is None else Optimizer(nets.critic, recipe, recipe.critic_lr),
    )


def load_policy(spec: RunSpec) -> LoadedModel:
    """The model, with adapters where the recipe asks for them."""
    from harness.models.load import load
    from harness.models.prepare import add_adapters, set_up

    model = load(spec.model, seed=spec.seed, device=spec.backend.device, dtype=spec.backend.dtype)
    set_up(model.policy, spec.backend)
    if spec.recipe.lora is not None:
        add_adapters(model.policy, spec.recipe.lora)
    return model


def planned_task(spec: RunSpec) -> Task:
    """The task, refused where its data file is no longer the one the study was planned with."""
    task = build_task(spec.task.name, spec.task.params)
    if task.info.data_sha256 != spec.task.data_sha256:
        raise UsageError(
            f"task {spec.task.name}",
            "the file has changed since the study was planned, and its old and new runs must not be mixed",
            "the file as it was, or the command again: it makes a new study",
        )
    return task


def load_routers(spec: RunSpec, algorithm: Algorithm, model: LoadedModel) -> RouterSet | None:
    """Those of a mixture of experts; refused where a replay needs what the model or the engine does not have."""
    from harness.models.response_logits import has_plain_head
    from harness.models.routers import is_moe, routers_of

    has_plain_head(model.policy)  # measured now: a forward in the middle of a pass would be taken for one of its own
    mode = replay_mode(algorithm, moe=is_moe(model.policy))
    routers = routers_of(model.policy, needed=mode != "off")
    if mode != "off" and spec.backend.update.compile:
        raise UsageError(
            f"routing_replay={mode} with backend.update.compile=true",
            "a compiled layer keeps the routes of the batch it was compiled with",
            "backend.update.compile=false, or routing_replay=off",
        )
    return routers


def networks(spec: RunSpec, algorithm: Algorithm, model: LoadedModel, routers: RouterSet | None = None) -> Networks:
    """Policy, and critic and reference by need; `routers` of the policy."""
    from harness.models.heads import ValueModel
    from harness.models.load import load
    from harness.models.prepare import prepare_decoder, set_up
    from harness.models.response_logits import WHOLE, token_logps
    from harness.models.shared_prompts import PromptStates, require_sharing

    reference = None
    if "reference" in algorithm.needs:
        reference = load(spec.model, seed=spec.seed, device=spec.backend.device, dtype=spec.backend.dtype).policy
        set_up(reference, spec.backend)
        reference.requires_grad_(False)
    critic = ValueModel(model.policy) if "critic" in algorithm.needs else None
    update = spec.backend.update
    chunk_tokens = None if update.chunk_logits else WHOLE
    if update.share_prompts:
        require_sharing(model.policy, model.pad_id, spec.model.name)
    prepare_decoder(model.policy, update, routers)
    for network in (critic, reference):
        if network is not None:
            prepare_decoder(network, update)
    return Networks(
        policy=model.policy,
        token_logps=partial(token_logps, chunk_tokens=chunk_tokens),
        temperature=spec.recipe.temperature,
        micro_batch_tokens=spec.recipe.micro_batch_tokens,
        pad_id=model.pad_id,
        critic=critic,
        reference=reference,
        run_prompts=partial(PromptStates, chunk_tokens=chunk_tokens) if update.share_prompts else None,
        sort_by_length=update.sort_by_length,
        skip_rows=update.skip_rows,
        reuse_forward=update.reuse_forward,
        routers=routers,
    )


def resident_mib() -> float:
    """Memory of this process in MiB: what it holds now on Linux, its peak elsewhere."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rollout_copy(backend: BackendSpec, model: LoadedModel) -> RolloutCopy | None:
    """The weights that sample, where they have another precision; None: the policy itself samples."""
    from harness.models.load import require_dtype
    from harness.models.rollout_copy import DTYPES, RolloutCopy

    if backend.rollout_dtype == backend.dtype:
        return None
    if backend.rollout_dtype in DTYPES:
        require_dtype(DTYPES[backend.rollout_dtype], backend.device)
    return RolloutCopy(model.policy, backend.rollout_dtype)


def build_sampler(
    spec: RunSpec, model: LoadedModel, codec: TextCodec, task: Task, routers: RouterSet | None = None
) -> Sampler:
    """The rollout engine by name, imported only when asked for."""
    if spec.backend.sampler == "transformers":
        from harness.backends.samplers.transformers import TransformersSampler

        own = rollout_copy(spec.backend, model)
        return TransformersSampler(
            model.policy if own is None else own.policy,
            refresh=None if own is None else own.refresh,
            eos_ids=model.eos_ids,
            pad_id=model.pad_id,
            batch_tokens=spec.recipe.generation_tokens,
            stop=spec.task.template.stop,
            decode=codec.decode,
            routers=routers,
        )
    from harness.backends.samplers.vllm.build import build_vllm
    from harness.models.response_logits import token_logps

    @torch.no_grad()
    def score(prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
        ids = torch.tensor([[*prompt, *response]], device=model.policy.device)
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, len(prompt) - 1 : -1] = True
        return token_logps(model.policy, ids, select, temperature=1.0)[0].tolist()

    return build_vllm(
        model.policy,
        model.tokenizer,
        spec.backend,
        eos_ids=model.eos_ids,
        stop=spec.task.template.stop,
        decode=codec.decode,
        probe=codec.encode(task.item("validation", 0).messages),
        score=score,
        routes=routers is not None and replay_mode(resolve(spec), moe=True) == "r3",
    )
