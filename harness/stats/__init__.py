"""Statistics over runs and questions: numpy and scipy only, pure functions, nothing of ours imported."""
