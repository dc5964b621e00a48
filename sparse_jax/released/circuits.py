"""Released circuits: `viz_data.pt` becomes a `Circuit`, its loss recomputed.

The released files store which channels were kept, some prompts and the loss
over them, but not how the one gives the other (issue 5 of
openai/circuit_sparsity). The procedure here: every channel that is not kept
takes its mean over the pretraining distribution, at every position; the loss of
a prompt is the cross-entropy between the two answer tokens at its last token.
"""

import contextlib
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
from sparse_jax.released import torch_file
from sparse_jax.released.models import config_fields
from sparse_jax.tasks import logit_difference, mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files

_SHAPE_FIELDS = ("n_layer", "n_head", "d_model", "d_mlp", "vocab_size")


def load_means(
  path: files.PathLike, model: transformer.Model
) -> dict[str, np.ndarray]:
  """Reads `mean_baseline_pretrain.pt`, per site `[layers, width]` float32.

  It maps hook names to means: "2.attn.q" or "final_resid" to `[width]`, also
  with leading axes of one; or a site without a layer to `[layers, width]`.
  Other names are passed over. Raises InputError if the file is damaged, or a
  site has other sizes, layers missing or non-finite values.
  """
  stored = _mapping(torch_file.load(path), f"{path}: the file")
  means = {}
  for name, site in sites.SITES.items():
    rows = sites.num_rows(name, model.config.n_layer)
    ids = [sites.site_id(name, row) for row in range(rows)]
    if site.per_layer and name in stored:
      values = list(_array(stored[name], path, name))
    elif any(i in stored for i in ids):
      values = [_array(stored.get(i), path, i) for i in ids]
    else:
      continue
    width = model.config.width(name)
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
    means[name] = np.stack([np.ravel(v) for v in values]).astype(np.float32)
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
  A site that has a name there in any layer is ablated wherever it is not kept,
  with `means` as `load_means` gives them; a site that has none stays open.
  Prompts: `importances.task_samples[0]`, the first half of class 1 and the
  second of class 2, row i paired with the row half the rows on; trailing 0s are
  padding. `answers` are the correct tokens after the two classes.

  `test_loss` is in nats, the mean over both sides of all pairs; the file's own
  metrics, halved to the same unit, are in `details["released"]`. `target_loss`
  is the file's, or else `test_loss`. Raises InputError if the file is damaged
  or refused, is of another model, or means or answers do not fit.
  """
  viz = _mapping(torch_file.load(path), f"{path}: the file")
  importances = _mapping(viz.get("importances"), f"{path}: importances")
  config = model.config
  stored, mine = importances.get("beeg_model_config"), config_fields(model)
  for name in _SHAPE_FIELDS if isinstance(stored, Mapping) else ():
    if stored.get(name) not in (None, mine[name]):
      raise errors.InputError(
        f"{path}: the circuit is of a model with {name}={stored[name]}; need"
        f" this model's {mine[name]}"
      )
  node_mask = _node_mask(viz.get("circuit_data"), config, path)
  for name, mask in node_mask.items():
    found = getattr(means.get(name), "shape", None)
    if found != mask.shape:
      raise errors.InputError(
        f"means of {name} have shape {found}; need {mask.shape}"
      )
  means = {name: np.asarray(means[name], np.float32) for name in node_mask}
  samples = importances.get("task_samples")
  sequences = task_sequences(samples, answers, config, path)
  evaluator = mask_evaluator.MaskEvaluator(model, params, means, sequences)
  pruned_S = evaluator.logit_difference(node_mask)
  full_S = evaluator.logit_difference(evaluator.constant(1))
  edges = edges_lib.find_edges(params, node_mask)
  metrics = {
    "num_nodes": sum(int(mask.sum()) for mask in node_mask.values()),
    "num_edges": len(edges),
    "test_loss": float(logit_difference.task_loss(pruned_S)),
    "test_accuracy": float(logit_difference.task_accuracy(pruned_S)),
    "full_model_test_loss": float(logit_difference.task_loss(full_S)),
    "full_model_test_accuracy": float(logit_difference.task_accuracy(full_S)),
    **edges_lib.count_token_edges(
      params, node_mask, np.asarray(sequences.tokens), np.asarray(answers)
    ),
  }
  released = _stored_metrics(viz, importances)
  target = released["target_loss"]
  return circuit_lib.Circuit(
    task=task,
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=metrics["test_loss"] if target is None else target,
    logit_scale=1.0,
    node_mask=node_mask,
    means=means,
    edges=edges,
    metrics=metrics,
    details={"released": released},
  )


def task_sequences(
  task_samples: Any,
  answers: tuple[int, int],
  config: config_lib.ModelConfig,
  where: files.PathLike,
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
  # The last token that is not padding; 0 in a row of nothing else.
  positions = np.max((tokens != 0) * np.arange(tokens.shape[1]), 1)
  tokens = tokens[:, : positions.max() + 1]
  correct = np.repeat(np.array(answers, np.int32), len(tokens) // 2)
  return sequences_lib.Sequences(
    tokens=jnp.asarray(tokens, jnp.int32),
    positions=jnp.asarray(positions, jnp.int32),
    correct=jnp.asarray(correct),
    incorrect=jnp.asarray(correct[::-1]),
    groups=jnp.tile(jnp.arange(len(correct) // 2), 2),
  )


def _node_mask(
  circuit_data: Any, config: config_lib.ModelConfig, where: files.PathLike
) -> dict[str, np.ndarray]:
  """Returns per site in the file `[layers, width]`, true for kept nodes."""
  circuit_data = _mapping(circuit_data, f"{where}: circuit_data")
  found = {}
  for full_name, kept in circuit_data.items():
    if full_name == "prune_config":
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
    mask = found.setdefault(name, np.zeros(config.site_shape(name), bool))
    mask[layer or 0, kept.astype(int)] = True
  if not found:
    raise errors.InputError(f"{where}: circuit_data is empty; need locations")
  return {name: found[name] for name in sites.SITES if name in found}


def _stored_metrics(viz: Mapping, importances: Mapping) -> dict[str, Any]:
  """Returns the file's own metrics; losses halved, from pairs to sides."""
  prune_config = viz.get("prune_config")
  if not isinstance(prune_config, Mapping):
    prune_config = {}
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


def _array(value: Any, where: files.PathLike, what: str) -> np.ndarray:
  """Returns a tensor or a list of numbers as an array."""
  if isinstance(value, (np.ndarray, Sequence)):
    with contextlib.suppress(ValueError):  # Of a ragged list.
      array = np.asarray(value)
      if array.dtype.kind in "biuf" or array.dtype.itemsize == 2:
        return array
  found = "missing" if value is None else "no array"
  raise errors.InputError(
    f"{where}: {what} is {found}; need a tensor of numbers"
  )
