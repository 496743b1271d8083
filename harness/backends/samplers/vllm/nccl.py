"""Weights from the trainer's GPU to a server's, without a file: vLLM's own transfer engine.

Trainer and server need GPUs of their own. The server is started by `harness serve` on a machine with CUDA.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from harness.backends.samplers.vllm.server import SLOW_S, Link
from harness.core.errors import InfrastructureError, UsageError
from harness.core.shapes import Tensor


class NcclTransfer:
    """One process group of the trainer (rank 0) and all workers; opened at the first transfer."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sender: Any = None
        self._tensors: Mapping[str, Tensor] = {}

    def send(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self._tensors = tensors
        try:
            self._sender = self._sender or self._opened()
            self._sender.send_weights()
        except Exception:
            with suppress(InfrastructureError):
                self._link.workers("harness_mend", SLOW_S)
            raise
        finally:
            self._tensors = {}

    def close(self) -> None:
        if self._sender is not None:
            with suppress(Exception):
                self._link.post("shutdown_weight_transfer_engine", {})
            self._sender = None

    def _opened(self) -> Any:
        try:
            from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except Exception as error:
            raise UsageError(
                "backend.engine.transfer = nccl",
                f"the trainer needs vLLM for it, and it cannot be imported ({error})",
                "backend.engine.transfer=file, with a folder that both machines can read",
            ) from error
        outer = self

        class Source(WeightSource):
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in outer._tensors.items()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                return iter(outer._tensors.items())

        workers = int(self._link.get("get_world_size")["world_size"])
        address, port = meeting_point(self._link.url)
        info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=1 + workers, rank=0)
        client = HTTPVLLMWeightSyncClient(self._link.url, timeout=SLOW_S)
        return WeightTransferTrainerFactory.trainer_init(info, client=client, source=Source())


def meeting_point(url: str) -> tuple[str, int]:
    """This machine's address as the server sees it, and a free port of it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "localhost", parts.port or 80)) as line:
        address = str(line.getsockname()[0])
    with socket.create_server((address, 0)) as free:
        return address, int(free.getsockname()[1])
