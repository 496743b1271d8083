"""Bundled tasks: importing this package registers them. Optional dependencies load when a task is built."""

from __future__ import annotations

from tasks import chain, jsonl, programs, reasoning_gym

__all__ = ["chain", "jsonl", "programs", "reasoning_gym"]
