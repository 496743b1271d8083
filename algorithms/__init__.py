"""The bundled algorithms; importing this package registers their parts, presets and arms."""

from algorithms import controls, dapo, gfpo, grpo, gspo, gspo_token, parts, peers, ppo, variants

__all__ = ["controls", "dapo", "gfpo", "grpo", "gspo", "gspo_token", "parts", "peers", "ppo", "variants"]
