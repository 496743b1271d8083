"""Sampler by BackendSpec: engine in this process or behind a URL, first weights, self-test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.backends.samplers.vllm.engine import Engine
from harness.backends.samplers.vllm.local import LocalEngine, LocalOptions
from harness.backends.samplers.vllm.nccl import NcclTransfer
from harness.backends.samplers.vllm.sampler import LIMIT, Score, VllmSampler
from harness.backends.samplers.vllm.server import Expected, FileTransfer, Link, ServerEngine
from harness.backends.samplers.vllm.weights import engine_head_size, head_sizes, named_tensors, write_folder
from harness.core.errors import UsageError
from harness.core.spec import BackendSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build_vllm(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    backend: BackendSpec,
    *,
    eos_ids: Sequence[int],
    stop: Sequence[str],
    decode: Callable[[Sequence[int]], str],
    probe: tuple[int, ...],
    score: Score,
    routes: bool = False,
) -> VllmSampler:
    """A sampler that has the policy's weights as version 0. `probe` is a prompt, `score` the trainer's log-probs.

    `routes`: completions say which experts their tokens went to.
    """
    engine = start_engine(policy, tokenizer, backend, with_tokenizer=bool(stop), routes=routes)
    sampler = VllmSampler(engine, eos_ids=eos_ids, stop=stop, decode=decode)
    try:
        sampler.sync(0)
        coarsest = max((backend.dtype, backend.rollout_dtype), key=LIMIT.__getitem__)
        sampler.self_test(probe, score, coarsest)
    except BaseException:
        sampler.close()
        raise
    return sampler


def start_engine(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    backend: BackendSpec,
    *,
    with_tokenizer: bool,
    routes: bool = False,
) -> Engine:
    """The engine that a BackendSpec names, without weights yet."""
    spec = backend.engine
    dtype = spec.dtype or backend.dtype
    if spec.server is not None:
        if routes:
            raise UsageError(
                f"routing_replay=r3 with the engine server {spec.server}",
                "its interface does not return which experts a token went to",
                "--sampler transformers, vllm in this process on a GPU, or routing_replay=r2 or off",
            )
        link = Link(spec.server)
        expected = Expected(
            architecture=type(policy).__name__,
            vocabulary=int(policy.config.get_text_config().vocab_size),
            dtype=dtype,
            head_sizes=head_sizes(policy),
        )
        transfer = NcclTransfer(link) if spec.transfer == "nccl" else FileTransfer(link, spec.folder)
        return ServerEngine(link, expected, transfer, partial(named_tensors, policy))
    head = engine_head_size(policy, backend.device)
    folder = Path(tempfile.mkdtemp(prefix="harness-vllm-"))
    try:
        write_folder(policy, tokenizer, folder, head)
        options = LocalOptions(
            folder=str(folder),
            device=backend.device,
            dtype=dtype,
            kv_cache_gib=spec.kv_cache_gib,
            gpu_memory=spec.gpu_memory,
            with_tokenizer=with_tokenizer,
            routes=routes,
        )
        return LocalEngine(options, partial(named_tensors, policy, head))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
