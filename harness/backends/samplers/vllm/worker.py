"""What is added to vLLM's workers: seeding, loading of the policy's weights, and exact entropies.

vLLM mixes `HarnessWorker` into its worker class (`worker_extension_cls`), in this process or in a server's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from harness import __version__
from harness.core.shapes import Tensor

EXTENSION = f"{__name__}.HarnessWorker"
LABEL = "label"  # key in the metadata of a weight file


class HarnessWorker:
    """Methods for `collective_rpc`; their names must not clash with the worker's own."""

    model_runner: Any
    vllm_config: Any
    rank: int

    def harness_prepare(self) -> dict[str, Any]:
        """Lets log-probs come with entropies, and tells what runs here."""
        from vllm.v1.sample.sampler import Sampler

        sampler = self.model_runner.sampler
        exact = isinstance(sampler, Sampler)
        if exact:
            sampler.gather_logprobs = logp_and_entropy
        config = self.vllm_config.model_config
        text = config.hf_text_config
        return {
            "harness": __version__,
            "entropy": exact,
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs": str(config.logprobs_mode),
            "context": int(config.max_model_len),
            "sequences": int(self.vllm_config.scheduler_config.max_num_seqs),
            "architecture": list(config.hf_config.architectures),
            "vocabulary": int(text.vocab_size),
            "head_dim": int(config.get_head_size()),
        }

    def harness_seed(self, seed: int) -> None:
        """Starts every generator the samplers of vLLM draw from."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  the generator that vLLM reads

    def harness_load(self, path: str | None = None, label: str = "", tensors: Any = None) -> None:
        """Replaces all weights: by `tensors` ((name, tensor) pairs), or by the file `path` that carries `label`."""
        source: Iterable[tuple[str, Tensor]] = tensors if path is None else read_labelled(path, label)
        pack_experts_again(self.model_runner.get_model())
        try:
            self.reload_weights(weights_iterator=source)  # type: ignore[attr-defined]  # the worker's own
        except BaseException:
            self.harness_mend()
            raise
        repack_tied_heads(self.model_runner.get_model())

    def harness_mend(self) -> None:
        """After a load that broke off: whole layers again, of old or new weights, so that the next load starts afresh.

        Without it, the next one would count what had arrived before and finish layers that are not complete.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model_runner.get_model(), self.vllm_config.model_config)


def read_labelled(path: str, label: str) -> Iterator[tuple[str, Tensor]]:
    """Named tensors of a safetensors file, refused where it is not the one that was announced."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get(LABEL)
        if found != label:
            raise ValueError(f"{path} holds the weights {found!r}, not {label!r}")
        for name in file.keys():  # noqa: SIM118  safetensors' file is no mapping
            yield name, file.get_tensor(name)


def pack_experts_again(model: torch.nn.Module) -> None:
    """Has the next load pack the experts of a mixture as the first one did.

    On CPU the kernel reads packed weights. vLLM 0.32 packs them when the kernel is made and takes a kernel that exists
    for a sign that nothing but the values has to be replaced, so a reload would leave it reading unpacked ones.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Packs a head that is tied to the embedding again.

    On CPU the head multiplies with a packed copy of its weights. Reloading renews the copies of the layers that appear
    in the checkpoint; a tied head does not, and would go on with the old weights, silently.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
            module.quant_method.process_weights_after_loading(module)


def logp_and_entropy(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
    """Instead of the most likely tokens: log-prob of the sampled token, then H = -sum p log p in nats, repeated.

    `logprobs` [n, V], `token_ids` [n]; returns n x (num_logprobs + 1) values. The ids beside the entropies mean
    nothing; they differ from the sampled one because some callers turn a row into a dictionary by id.
    """
    from vllm.v1.outputs import LogprobsTensors

    chosen = logprobs.gather(-1, token_ids[:, None])
    entropy = -torch.special.xlogy(logprobs.exp(), logprobs.exp()).sum(-1, keepdim=True)
    others = (token_ids[:, None] + torch.arange(1, num_logprobs + 1, device=token_ids.device)) % logprobs.shape[-1]
    return LogprobsTensors(
        torch.cat([token_ids[:, None], others], dim=1).to(torch.int32),
        torch.cat([chosen, entropy.expand(-1, num_logprobs)], dim=1),
        torch.ones_like(token_ids, dtype=torch.int32),
    )
