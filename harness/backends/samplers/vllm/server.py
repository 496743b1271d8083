"""An engine in a server process, on this or another machine: `harness serve` starts one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch

from harness import __version__
from harness.backends.samplers.vllm.engine import Ask, Draft, Engine, SamplingRule
from harness.backends.samplers.vllm.requests import request_fields
from harness.backends.samplers.vllm.worker import LABEL
from harness.core.errors import InfrastructureError, UsageError
from harness.core.shapes import Tensor

AT_ONCE: Final = 256  # requests under way
QUICK_S, SLOW_S = 20.0, 3600.0  # patience with a question, and with generation or a weight transfer
UNLABELLED: Final = "none"
_open = build_opener(ProxyHandler({})).open  # a server of ours is never behind a proxy


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the server must be serving."""

    architecture: str
    vocabulary: int
    dtype: str
    head_sizes: frozenset[int]  # that the weights can be given


class Transfer(Protocol):
    """Moves named tensors into all workers of a server; raises whatever goes wrong."""

    def send(self, tensors: Mapping[str, Tensor], label: str) -> None: ...

    def close(self) -> None: ...


class Link:
    """JSON over HTTP with one server; every failure is an InfrastructureError that names the way out."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        return self._ask(path, None, QUICK_S)

    def post(self, path: str, body: Mapping[str, Any], patience_s: float = QUICK_S) -> Any:
        return self._ask(path, body, patience_s)

    def workers(self, method: str, patience_s: float = QUICK_S, **arguments: Any) -> list[Any]:
        """Calls a method of every worker."""
        answer = self.post("collective_rpc", {"method": method, "kwargs": arguments}, patience_s)
        return list((answer or {}).get("results", []))

    def _ask(self, path: str, body: Mapping[str, Any] | None, patience_s: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/{path}", data=data, headers={"Content-Type": "application/json"})
        try:
            with _open(request, timeout=patience_s) as response:
                text = response.read()
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:500].strip()
            raise InfrastructureError(f"{self.url}/{path} answered {error.code}: {said or error.reason}") from error
        except (OSError, HTTPException) as error:  # refused, reset, timed out, closed half-way
            raise InfrastructureError(
                f"the engine server {self.url} does not answer /{path} ({type(error).__name__}: {error}); start it "
                "again with `harness serve`, then repeat the command to continue from the last checkpoint"
            ) from error
        return json.loads(text) if text else None


class ServerEngine(Engine):
    """Token ids over HTTP in both directions; weights through a `Transfer`."""

    def __init__(
        self,
        link: Link,
        expected: Expected,
        transfer: Transfer,
        tensors: Callable[[int], Mapping[str, Tensor]],
    ) -> None:
        self.place = f"the engine server {link.url}"
        self._link, self._transfer, self._tensors = link, transfer, tensors
        facts = hello(link)
        check(link.url, facts, expected)
        self.context = int(facts["context"])
        self._entropy, self._head = bool(facts["entropy"]), int(facts["head_dim"])
        self._most = int(facts["sequences"])  # samples of one request

    def load(self, label: str) -> None:
        """Unnames the weights, moves the new ones, forgets prefixes, names them, and reads the name back."""
        try:
            self._link.post("update_weight_version", {"new_version": UNLABELLED})
            with torch.no_grad():
                self._transfer.send(self._tensors(self._head), label)
            self._link.post("reset_prefix_cache?reset_running_requests=true", {})
            self._link.post("update_weight_version", {"new_version": label})
            found = self._link.get("weight_info")["weight_version"]
            if found != label:
                raise InfrastructureError(f"it says that it holds {found}")
        except Exception as error:
            raise InfrastructureError(
                f"the weights {label} could not be handed to {self.place} ({type(error).__name__}: {error}); nothing "
                "is sampled from what may be a mixture of old and new ones; repeat the command to continue from the "
                "last checkpoint"
            ) from error

    def sample(self, asks: Sequence[Ask], rule: SamplingRule) -> list[list[Draft]]:
        self._link.workers("harness_seed", seed=rule.seed)
        # Two, because the server drops the last of several; see logp_and_entropy.
        common = request_fields(rule, 2 if self._entropy else 0)
        parts = [(i, part) for i, ask in enumerate(asks) for part in split(ask, self._most)]
        found: list[list[Draft]] = [[] for _ in asks]
        pool = ThreadPoolExecutor(min(AT_ONCE, len(parts)))
        try:
            for (i, _), drafts in zip(parts, pool.map(lambda p: self._one(p[1], common), parts), strict=True):
                found[i] += drafts
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def close(self) -> None:
        self._transfer.close()

    def _one(self, ask: Ask, common: Mapping[str, Any]) -> list[Draft]:
        params = {**common, "n": ask.num_samples, "max_tokens": ask.limit}
        body = {"token_ids": list(ask.prompt_ids), "sampling_params": params}
        answer = self._link.post("inference/v1/generate", body, SLOW_S)
        choices = sorted(answer["choices"], key=lambda c: c["index"])
        return [self._draft(c) for c in choices]

    def _draft(self, choice: Mapping[str, Any]) -> Draft:
        if choice["finish_reason"] not in ("stop", "length"):
            raise InfrastructureError(
                f"{self.place} gave up a response ({choice['finish_reason']}); repeat the command to continue"
            )
        positions = choice["logprobs"]["content"]
        return Draft(
            token_ids=tuple(choice["token_ids"]),
            logp=tuple(float(p["logprob"]) for p in positions),
            entropy=tuple(float(p["top_logprobs"][1]["logprob"]) for p in positions) if self._entropy else None,
            labels=frozenset(span["version"] for span in choice["weight_versions"] or ()),
        )


def split(ask: Ask, most: int) -> Iterator[Ask]:
    """The same in requests of at most `most` samples."""
    for first in range(0, ask.num_samples, most):
        yield replace(ask, num_samples=min(most, ask.num_samples - first))


class FileTransfer:
    """Writes a file into a folder that the server's machine can read too, and has the workers load it."""

    def __init__(self, link: Link, folder: str | None) -> None:
        self._link, self._outer = link, folder
        self._folder: Path | None = None  # made when there is something to send

    def send(self, tensors: Mapping[str, Tensor], label: str) -> None:
        from safetensors.torch import save_file

        path = self._place() / "weights.safetensors"
        try:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, metadata={LABEL: label})
            path.chmod(0o644)
            self._link.workers("harness_load", SLOW_S, path=str(path), label=label)
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _place(self) -> Path:
        if self._folder is None:
            if self._outer is not None:
                Path(self._outer).mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="harness-weights-", dir=self._outer))
            self._folder.chmod(0o755)  # the server may run as another user
        return self._folder


def hello(link: Link) -> dict[str, Any]:
    """What the server runs; UsageError where it was not started by `harness serve`."""
    instead = "start it with `harness serve --model ...`, from the same version of the harness"
    link.get("health")
    try:
        answers = link.workers("harness_prepare", SLOW_S)
    except InfrastructureError as error:
        raise UsageError(f"server {link.url}", f"it does not know the harness ({error})", instead) from error
    facts = [a for a in answers if isinstance(a, dict)]
    if not facts or facts[0].get("harness") != __version__:
        raise UsageError(
            f"server {link.url}",
            f"it runs harness {facts[0].get('harness') if facts else 'of no version'}, this is {__version__}",
            instead,
        )
    return dict(facts[0])


def check(url: str, facts: Mapping[str, Any], expected: Expected) -> None:
    """Refuses a server of another model or another kind of numbers."""
    found = {
        "model": f"{', '.join(facts['architecture'])} with {facts['vocabulary']} tokens",
        "dtype": facts["dtype"],
        "log-probs": facts["logprobs"],
    }
    wanted = {
        "model": f"{expected.architecture} with {expected.vocabulary} tokens",
        "dtype": expected.dtype,
        "log-probs": "processed_logprobs",
    }
    for what, value in wanted.items():
        if found[what] != value:
            raise UsageError(
                f"server {url}: {what} {found[what]}",
                f"the study asks for {value}",
                "another server, or the study's model and backend.engine.dtype",
            )
    if facts["head_dim"] not in expected.head_sizes:
        raise UsageError(
            f"server {url}: heads of size {facts['head_dim']}",
            f"this model's weights come for {sorted(expected.head_sizes)}",
            "start it with `harness serve` and the study's model",
        )
