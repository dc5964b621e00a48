"""A model watched by its circuits: what each says of a prompt, and alarms."""

from sparse_jax.watch.monitor import ALARMS, Monitor, Reading

__all__ = ["ALARMS", "Monitor", "Reading"]
