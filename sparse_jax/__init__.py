"""Train weight-sparse transformers, prune them to circuits, and look."""

from sparse_jax import tasks
from sparse_jax.checkpoint import load_model, load_tokenizer, save_model
from sparse_jax.circuit import Circuit
from sparse_jax.errors import InputError
from sparse_jax.model import Model
from sparse_jax.taps import run_with_sites

__all__ = [
  "Circuit",
  "InputError",
  "Model",
  "load_model",
  "load_tokenizer",
  "run_with_sites",
  "save_model",
  "tasks",
]
