"""Bundled tasks: importing this package registers them. Optional dependencies load when a task is built."""

from __future__ import annotations

from tasks import calculator, chain, guess, jsonl, programs, reasoning_gym

__all__ = ["calculator", "chain", "guess", "jsonl", "programs", "reasoning_gym"]
