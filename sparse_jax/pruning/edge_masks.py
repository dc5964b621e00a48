"""Edge masks: which of a circuit's edges the task needs.

Node pruning charges a dense model for every pair of kept nodes. Here each edge
between kept nodes has a mask parameter of its own, trained like the nodes'
(`masks.py`). A closed edge carries its source's ablation value instead of its
source: y = x (W ∘ M) + μ (W ∘ (1 - M)).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.pruning import batched, calibrate, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_INIT_TAU = 0.3


def find_essential(
  target: target_lib.Target,
  candidate: thresholding.Candidate,
  train: sequences_lib.Sequences,
  config: config_lib.PruneConfig,
  seed: int,
  description: str,
) -> dict[str, np.ndarray] | None:
  """Returns the fewest edges seen to meet the target, by matrix.

  Trains one mask per edge at each cost of `edge_k_coefs`, orders the edges by
  it and keeps as many as the target takes on validation pairs.

  Args:
    target: what the edges have to reach; its sites must be gated ones.
    candidate: the circuit whose edges are in question.
    train: training pairs.
    config: costs, `edge_steps`, `batch_size` and the optimizer's values.
    seed: of the batches.
    description: for the progress bar.

  Returns:
    Boolean masks like the matrices, or None where not even all edges meet the
    target.
  """
  kept = edges_lib.kept_edges(target.evaluator.params, candidate.node_mask)
  total = len(config.edge_k_coefs) * config.edge_steps
  found = []
  with progress.progress_bar(total, 0, description) as bar:
    for k_coef in config.edge_k_coefs:
      state = _train(target, candidate, kept, train, config, k_coef, seed, bar)
      found.append(_threshold(target, candidate, kept, state))
  size = lambda essential: sum(int(np.sum(m)) for m in essential.values())
  return min((e for e in found if e is not None), key=size, default=None)


def _train(target, candidate, kept, train, config, k_coef, seed, bar):
  """Returns mask parameters and the optimizer's state at one cost."""
  evaluator = target.evaluator
  # Of the dtype and on the device that a step returns, or it compiles twice.
  start, closed = jnp.float32(_INIT_TAU), jnp.float32(-1)
  tau = {path: jnp.where(keep, start, closed) for path, keep in kept.items()}
  hyperparameters = masks_lib.Hyperparameters.from_config(
    config, k_coef=k_coef, seed=seed
  )
  optimizer = masks_lib.mask_optimizer(hyperparameters, config.edge_steps)
  state = sharding.on_all(evaluator.params, (tau, optimizer.init(tau)))
  num_pairs = len(train.tokens) // 2
  for i in range(config.edge_steps):
    rows = batched.draw_rows(num_pairs, config.batch_size, seed, i)
    batch = sequences_lib.Sequences(*(x[rows] for x in train))
    state, num_open = _train_step(
      evaluator.on(batch),
      config.edge_steps,
      candidate.node_mask,
      kept,
      hyperparameters,
      candidate.calibration.scale,
      state,
    )
    bar.update()
  bar.set_postfix(edges=int(num_open))
  return state


@functools.partial(jax.jit, static_argnames="steps")
def _train_step(
  evaluator, steps, nodes, allowed, hyperparameters, scale, state
):
  tau, opt_state = state

  def objective(tau):
    gates = {
      path: jnp.where(
        allowed[path],
        masks_lib.binarize(t, hyperparameters.temperature),
        1.0,
      )
      for path, t in tau.items()
    }
    diff_S = mask_evaluator.masked_logit_difference(
      evaluator.model,
      evaluator.freeze_norms,
      evaluator.params,
      evaluator.means,
      nodes,
      evaluator.sequences,
      gates,
    )
    num_open = sum(jnp.sum(g * allowed[path]) for path, g in gates.items())
    loss = logit_difference_lib.task_loss(diff_S, scale)
    return loss + hyperparameters.k_coef * num_open, num_open

  grads, num_open = jax.grad(objective, has_aux=True)(tau)
  optimizer = masks_lib.mask_optimizer(hyperparameters, steps)
  updates, opt_state = optimizer.update(grads, opt_state, tau)
  return (optax.apply_updates(tau, updates), opt_state), num_open


def _threshold(target, candidate, kept, state):
  tau, opt_state = state
  moments = optax.tree.get(opt_state, "mu")
  # Of the edges alone: a large model has a hundred weights to each.
  of_edges = lambda tree: np.concatenate(
    [np.asarray(tree[path])[keep] for path, keep in kept.items()]
  )
  order = np.lexsort((of_edges(moments), -of_edges(tau)))
  if not len(order):
    return kept
  is_edge = np.concatenate([np.ravel(keep) for keep in kept.values()])
  shapes = {path: keep.shape for path, keep in kept.items()}
  tried: dict[int, float] = {}

  def keep_first(counts):
    # Weights that are no edges stay: closed sources carry their means anyway.
    masks = np.ones((len(counts), len(is_edge)), bool)
    masks[:, is_edge] = masks_lib.first_of_order(order, counts, len(order))
    return masks_lib.unflatten(shapes, masks)

  def shares_of(counts):
    reached = target.measure(candidate.node_mask, keep_first(counts))
    tried.update(zip(counts.tolist(), reached.shares.tolist(), strict=True))
    return reached.shares

  hint = max(1, len(order) * 2 // 3)
  count = thresholding.smallest_count(shares_of, len(order), hint)
  if tried[count] > 1:
    return None
  essential = keep_first([count])
  return {path: essential[path][0] & kept[path] for path in kept}


def mark_edges(
  params: transformer.Params,
  edges: list[dict[str, Any]],
  essential: Mapping[str, np.ndarray],
) -> None:
  """Writes "essential" into a circuit's edges, as circuit.json has them."""
  for edge in edges:
    path, *entry = edges_lib.entry(edge, params)
    edge["essential"] = bool(essential[path][tuple(entry)])


def essential_metrics(
  evaluator: mask_evaluator.MaskEvaluator,
  node_mask: Mapping[str, np.ndarray],
  essential: Mapping[str, np.ndarray],
  test: sequences_lib.Sequences,
  shifts: bool,
) -> dict[str, Any]:
  """Returns a circuit's metrics on test pairs with only essential edges open.

  The calibration is fitted on the evaluator's prompts.
  """
  kept = edges_lib.kept_edges(evaluator.params, node_mask)
  gates = {path: (essential[path] | ~kept[path])[None] for path in kept}
  scores = calibrate.score_masks(evaluator, node_mask, shifts, gates)
  diff_S = logit_difference_lib.calibrate(
    evaluator.on(test).logit_differences(node_mask, gates)[0],
    logit_difference_lib.answer_sign(test.correct, test.incorrect),
    scores.calibration(0),
  )
  return {
    "num_essential_edges": sum(int(np.sum(m)) for m in essential.values()),
    "essential_edges_test_loss": float(logit_difference_lib.task_loss(diff_S)),
    "essential_edges_test_accuracy": float(
      logit_difference_lib.task_accuracy(diff_S)
    ),
  }
