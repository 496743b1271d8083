"""One recorded rollout batch under several algorithms: why their gradients differ."""
