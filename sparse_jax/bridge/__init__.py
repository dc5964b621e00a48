"""Bridges between a sparse model and a frozen dense one, at every sublayer."""

from sparse_jax.bridge.carry import carry_over
from sparse_jax.bridge.curves import steering_curves
from sparse_jax.bridge.directory import Bridge
from sparse_jax.bridge.steering import Steering, control, steer
from sparse_jax.bridge.train import run

__all__ = (
  "Bridge",
  "Steering",
  "carry_over",
  "control",
  "run",
  "steer",
  "steering_curves",
)
