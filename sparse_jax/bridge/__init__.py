"""Bridges between a sparse model and a frozen dense one, at every sublayer."""

from sparse_jax.bridge.carry import carry_over
from sparse_jax.bridge.curves import curves
from sparse_jax.bridge.directory import Bridge
from sparse_jax.bridge.run import run
from sparse_jax.bridge.steering import Steering, control, steer

__all__ = (
  "Bridge",
  "Steering",
  "carry_over",
  "control",
  "curves",
  "run",
  "steer",
)
