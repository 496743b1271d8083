"""Sampling parameters as both kinds of engine send them."""

from __future__ import annotations

from typing import Any

from harness.backends.samplers.vllm.engine import SamplingRule


def request_fields(rule: SamplingRule, num_logprobs: int) -> dict[str, Any]:
    """The part of vLLM's SamplingParams that all requests of a call share."""
    return {
        "temperature": rule.temperature,
        "stop_token_ids": list(rule.end_ids),
        "ignore_eos": True,  # all end ids are in the list
        "stop": list(rule.stop),
        "include_stop_str_in_output": True,
        "detokenize": bool(rule.stop),
        "logprobs": num_logprobs,
    }
