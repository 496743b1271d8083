"""Benchmarking and ablation harness for RL post-training of language models."""

__version__ = "0.1.0"
NUMERICS_VERSION = 1  # raised whenever the golden trace moves, so that old and new runs are never mixed
