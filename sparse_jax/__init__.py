"""Train weight-sparse transformers, prune them to circuits, and look."""

from sparse_jax import tasks
from sparse_jax.checkpoint import load_model, load_tokenizer, save_model
from sparse_jax.circuit import Circuit
from sparse_jax.model.hooks import run_with_sites
from sparse_jax.model.transformer import Model
from sparse_jax.utils.errors import InputError

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
