"""Train weight-sparse transformers, prune them to circuits, and look."""

from sparse_jax import config, tasks
from sparse_jax.bridge.carry import carry_over
from sparse_jax.bridge.directory import Bridge
from sparse_jax.bridge.steering import steer
from sparse_jax.checkpoint import load_model, load_tokenizer, save_model
from sparse_jax.circuit import Circuit
from sparse_jax.explain import explain_prompt
from sparse_jax.faithfulness.criteria import evidence
from sparse_jax.faithfulness.pipeline import prune
from sparse_jax.model.hooks import run_with_sites
from sparse_jax.model.transformer import Model
from sparse_jax.reference import load_circuits
from sparse_jax.report.notebook import TrainingCurve, show, show_params
from sparse_jax.tasks.evaluation import score_model
from sparse_jax.training.loop import run as train
from sparse_jax.utils.errors import InputError
from sparse_jax.watch.monitor import Monitor

__all__ = [
  "Bridge",
  "Circuit",
  "InputError",
  "Model",
  "Monitor",
  "TrainingCurve",
  "carry_over",
  "config",
  "evidence",
  "explain_prompt",
  "load_circuits",
  "load_model",
  "load_tokenizer",
  "prune",
  "run_with_sites",
  "save_model",
  "score_model",
  "show",
  "show_params",
  "steer",
  "tasks",
  "train",
]
