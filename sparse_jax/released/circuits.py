"""Released circuits: `viz_data.pt` becomes a `Circuit`, its loss recomputed.

The released files store which channels were kept, some prompts and the loss
over them, but not how the one gives the other (issue 5 of
openai/circuit_sparsity). The procedure here: every channel that is not kept
takes its mean over the pretraining distribution, at every position; the loss of
a prompt is the cross-entropy between the two answer tokens at its last token.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.released import models as released_models
from sparse_jax.released import torch_file
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files

_NOT_LOCATIONS = ("prune_config",)
_SHAPE_FIELDS = ("n_layer", "n_head", "d_model", "d_mlp", "vocab_size")


def load_means(
  path: files.PathLike, model: transformer.Model
) -> dict[str, np.ndarray]:
  """Reads `mean_baseline_pretrain.pt`.

  It maps hook names to means: "2.attn.q" or "final_resid" to `[width]`, also
  with leading axes of one; or a site without a layer to `[layers, width]`.
  Names that are not sites are passed over.

  Returns:
    Per site that the file has, in every layer, `[layers, width]` float32.

  Raises:
    InputError: if the file is damaged, or a site has other sizes, layers
      missing or non-finite values.
  """
  stored = _mapping(torch_file.load(path), f"{os.fspath(path)}: the file")
  config = model.config
  means = {}
  for name in sites.SITES:
    rows = sites.num_rows(name, config.n_layer)
    ids = [sites.site_id(name, row) for row in range(rows)]
    if sites.SITES[name].per_layer and name in stored:
      values = list(_array(stored[name], path, name))
    elif any(i in stored for i in ids):
      values = [_array(stored.get(i), path, i) for i in ids]
    else:
      continue
    width = config.width(name)
    for full_name, value in zip(ids, values, strict=False):
      if value.size != width or not np.isfinite(value).all():
        raise errors.InputError(
          f"{path}: {full_name} has shape {value.shape}; need {width} finite"
          " means"
        )
    if len(values) != rows:
      raise errors.InputError(
        f"{path}: {name} has {len(values)} layers; need {rows}"
      )
    means[name] = np.stack([v.reshape(width) for v in values])
    means[name] = means[name].astype(np.float32)
  return means


def load_circuit(
  path: files.PathLike,
  model: transformer.Model,
  params: transformer.Params,
  means: Mapping[str, np.ndarray],
  answers: tuple[int, int],
  task: str,
) -> circuit_lib.Circuit:
  """Reads a `viz_data.pt` and measures its circuit on the prompts it holds.

  `circuit_data` maps hook names to the kept indices (or to `[width]` booleans).
  A site that has a name there in any layer is ablated wherever it is not kept;
  a site that has none stays open. Prompts: `importances.task_samples[0]`, the
  first half of class 1 and the second of class 2, row i paired with the row
  half the rows on; trailing 0s are padding.

  Args:
    path: the file.
    model: the model it was cut from.
    params: the model's.
    means: ablation values, as `load_means` gives them.
    answers: the correct tokens after prompts of class 1 and of class 2.
    task: what to call it.

  Returns:
    The circuit. Its `test_loss` is in nats, the mean over both sides of all
    pairs; the file's own metrics, halved to the same unit, are in
    `details["released"]`. `target_loss` is the file's, or else `test_loss`.

  Raises:
    InputError: if the file is damaged or refused, is of another model, or means
      or answers do not fit.
  """
  where = os.fspath(path)
  viz = _mapping(torch_file.load(path), f"{where}: the file")
  importances = _mapping(viz.get("importances"), f"{where}: importances")
  _check_model(importances.get("beeg_model_config"), model, where)
  node_mask = _node_mask(viz.get("circuit_data"), model.config, where)
  for name, mask in node_mask.items():
    if name not in means or means[name].shape != mask.shape:
      found = means[name].shape if name in means else None
      raise errors.InputError(
        f"means of {name} have shape {found}; need {mask.shape}"
      )
  sequences = task_sequences(
    importances.get("task_samples"), answers, model.config, where
  )

  made = circuit_lib.Circuit(
    task=task,
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.0,
    logit_scale=1.0,
    node_mask=node_mask,
    means={name: np.asarray(means[name], np.float32) for name in node_mask},
    edges=edges_lib.find_edges(params, node_mask),
    metrics={},
  )
  evaluator = mask_evaluator.MaskEvaluator(model, params, made.means, sequences)
  full_S = evaluator.logit_difference(evaluator.constant(1))
  pruned_S = evaluator.logit_difference(node_mask)
  made.metrics.update(
    num_nodes=made.num_nodes,
    num_edges=made.num_edges,
    test_loss=float(logit_difference_lib.task_loss(pruned_S)),
    test_accuracy=float(logit_difference_lib.task_accuracy(pruned_S)),
    full_model_test_loss=float(logit_difference_lib.task_loss(full_S)),
    full_model_test_accuracy=float(logit_difference_lib.task_accuracy(full_S)),
    **edges_lib.count_token_edges(
      params, node_mask, np.asarray(sequences.tokens), np.asarray(answers)
    ),
  )
  stored = _stored_metrics(viz, importances)
  made.details["released"] = stored
  target = stored["target_loss"]
  return dataclasses.replace(
    made, target_loss=made.metrics["test_loss"] if target is None else target
  )


def task_sequences(
  task_samples: Any,
  answers: tuple[int, int],
  config: config_lib.ModelConfig,
  where: str,
) -> sequences_lib.Sequences:
  """Returns the stored prompts as pairs; raises InputError if they are none."""
  if isinstance(task_samples, (tuple, list)) and len(task_samples):
    task_samples = task_samples[0]
  tokens = _array(task_samples, where, "importances.task_samples")
  is_whole = np.issubdtype(tokens.dtype, np.integer)
  if tokens.ndim != 2 or len(tokens) % 2 or not tokens.size or not is_whole:
    raise errors.InputError(
      f"{where}: importances.task_samples has shape {tokens.shape} of"
      f" {tokens.dtype}; need whole numbers [prompts, length], two classes of"
      " equal size"
    )
  in_vocab = lambda x: np.all((0 <= x) & (x < config.vocab_size))
  if not in_vocab(tokens):
    raise errors.InputError(
      f"{where}: importances.task_samples has tokens up to {tokens.max()};"
      f" need 0 to {config.vocab_size - 1}"
    )
  is_id = all(isinstance(a, (int, np.integer)) for a in answers)
  if len(answers) != 2 or not is_id or not in_vocab(np.array(answers)):
    raise errors.bad_value(
      "answers", answers, f"two tokens from 0 to {config.vocab_size - 1}"
    )
  length = tokens.shape[1]
  num_padding = np.argmax(tokens[:, ::-1] != 0, 1)
  is_empty = ~np.any(tokens, 1)
  positions = np.where(is_empty, 0, length - 1 - num_padding)
  tokens = tokens[:, : positions.max() + 1]
  correct = np.repeat(np.array(answers, np.int32), len(tokens) // 2)
  return sequences_lib.Sequences(
    tokens=jnp.asarray(tokens, jnp.int32),
    positions=jnp.asarray(positions, jnp.int32),
    correct=jnp.asarray(correct),
    incorrect=jnp.asarray(correct[::-1]),
  )


def _check_model(stored: Any, model: transformer.Model, where: str) -> None:
  """Checks that the shape the file states, if it does, is the model's."""
  if not isinstance(stored, Mapping):
    return
  mine = released_models.config_fields(model)
  for name in _SHAPE_FIELDS:
    if stored.get(name) not in (None, mine[name]):
      raise errors.InputError(
        f"{where}: the circuit is of a model with {name}={stored[name]}; need"
        f" this model's {mine[name]}"
      )


def _node_mask(
  circuit_data: Any, config: config_lib.ModelConfig, where: str
) -> dict[str, np.ndarray]:
  """Returns per site in the file `[layers, width]`, true for kept nodes."""
  circuit_data = _mapping(circuit_data, f"{where}: circuit_data")
  found: dict[str, np.ndarray] = {}
  for full_name, kept in circuit_data.items():
    if full_name in _NOT_LOCATIONS:
      continue
    name, layer = sites.parse_site_id(str(full_name), config.n_layer)
    width = config.width(name)
    kept = _array(kept, where, f"circuit_data {full_name}").reshape(-1)
    if kept.dtype == bool and len(kept) == width:
      kept = np.flatnonzero(kept)
    is_whole = np.issubdtype(kept.dtype, np.integer)
    if len(kept) and not (is_whole and 0 <= kept.min() <= kept.max() < width):
      raise errors.InputError(
        f"{where}: circuit_data {full_name} holds {kept.dtype} from"
        f" {kept.min()} to {kept.max()}; need indices from 0 to {width - 1}"
      )
    rows = sites.num_rows(name, config.n_layer)
    mask = found.setdefault(name, np.zeros((rows, width), bool))
    mask[layer or 0, kept.astype(int)] = True
  if not found:
    raise errors.InputError(f"{where}: circuit_data is empty; need locations")
  return {name: found[name] for name in sites.SITES if name in found}


def _stored_metrics(viz: Mapping, importances: Mapping) -> dict[str, Any]:
  """Returns the file's own metrics; losses halved, from pairs to sides."""
  prune_config = viz.get("prune_config")
  prune_config = prune_config if isinstance(prune_config, Mapping) else {}
  plain = {
    str(k): v
    for k, v in prune_config.items()
    if isinstance(v, (int, float, str))
  }
  return {
    "full_model_loss": _half(importances.get("loss")),
    "circuit_loss": _half(importances.get("interv_loss")),
    "target_loss": _half(plain.get("target_loss")),
    "num_total_nodes": viz.get("num_total_nodes"),
    "prune_config": plain,
  }


def _half(value: Any) -> float | None:
  if isinstance(value, np.ndarray) and value.size == 1:
    value = value.item()
  is_number = isinstance(value, (int, float)) and np.isfinite(value)
  return value / 2 if is_number else None


def _mapping(value: Any, what: str) -> Mapping:
  if not isinstance(value, Mapping):
    raise errors.InputError(
      f"{what} is a {type(value).__name__}; need a mapping"
    )
  return value


def _array(value: Any, path: files.PathLike, what: str) -> np.ndarray:
  """Returns a tensor or a list of numbers as an array."""
  try:
    if isinstance(value, (np.ndarray, Sequence)) and value is not None:
      array = np.asarray(value)
      if array.dtype.kind in "biuf" or array.dtype.itemsize == 2:
        return array
  except ValueError:
    pass
  raise errors.InputError(
    f"{os.fspath(path)}: {what} is {'missing' if value is None else 'no array'}"
    "; need a tensor of numbers"
  )
