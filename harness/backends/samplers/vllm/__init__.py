"""vLLM as the rollout engine: in the training process, or in a server process of its own."""
