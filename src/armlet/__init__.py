"""armlet: a trained robot policy in, a faster student out, and the proof."""

from typing import Any

__all__ = ["Observation", "load_policy"]


def __getattr__(name: str) -> Any:
    """The public names, loaded on first use, so that `armlet --help` need not wait for torch."""
    if name == "load_policy":
        from armlet.policies.checkpoint import load_policy

        return load_policy
    if name == "Observation":
        from armlet.robot.observation import Observation

        return Observation
    raise AttributeError(f"module 'armlet' has no attribute {name!r}; it has {', '.join(__all__)}")
