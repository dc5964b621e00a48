"""Edge masks: which of a circuit's edges the task needs.

Node pruning charges a dense model for every pair of kept nodes. Here each edge
between kept nodes has a mask parameter of its own, trained like the nodes'
(`prune.py`). A closed edge carries its source's ablation value instead of its
source: y = x (W ∘ M) + μ (W ∘ (1 - M)).
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import calibrate, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_EDGE_COST = 1e-3
_MASKS_PER_CALL = 8


def find_essential(
  judge: thresholding.Judge,
  candidate: thresholding.Candidate,
  train: sequences_lib.Sequences,
  config: config_lib.PruneConfig,
  target: float,
  seed: int,
  description: str,
) -> dict[str, np.ndarray] | None:
  """Returns the fewest edges found to meet the target, by matrix.

  Trains one mask per edge at a fixed cost, orders the edges by it and keeps as
  many as the target takes on validation pairs.

  Args:
    judge: of the task; its sites must be gated ones.
    candidate: the circuit whose edges are in question.
    train: training pairs.
    config: `edge_steps`, `batch_size`.
    target: in nats, mean over both sides.
    seed: of the batches.
    description: for the progress bar.

  Returns:
    Boolean masks like the matrices, or None where not even all edges meet the
    target.
  """
  kept = edges_lib.kept_edges(judge.params, candidate.node_mask)
  nodes = thresholding.jnp_mask(candidate.node_mask)
  allowed = {path: jnp.asarray(keep) for path, keep in kept.items()}
  tau = {p: jnp.where(keep, 0.3, -1.0) for p, keep in allowed.items()}
  setting = masks_lib.Hyperparameters(
    k_coef=jnp.asarray(_EDGE_COST),
    learning_rate=jnp.asarray(config.learning_rate),
    warmup_fraction=jnp.asarray(config.warmup_fraction),
    beta2=jnp.asarray(config.beta2),
    weight_decay=jnp.asarray(config.weight_decay),
    temperature=jnp.asarray(config.temperature),
    init_bias=jnp.asarray(0.0),
    init_scale=jnp.asarray(0.0),
    seed=jnp.asarray(seed),
  )
  optimizer = masks_lib.mask_optimizer(setting, config.edge_steps)
  model, params, means = judge.model, judge.params, judge.means
  scale = candidate.calibration.scale

  @jax.jit
  def step(tau, state, batch, params, means, nodes, allowed):
    def objective(tau):
      gates = {
        p: jnp.where(allowed[p], masks_lib.gate(t, setting.temperature), 1.0)
        for p, t in tau.items()
      }
      masked = edges_lib.mask_edges(params, gates, means)
      hook = judge.hook(params, batch, nodes, means)
      diff = logit_difference_lib.logit_difference(model, masked, batch, hook)
      cost = sum(jnp.sum(g * allowed[p]) for p, g in gates.items())
      return logit_difference_lib.task_loss(
        diff, scale
      ) + setting.k_coef * cost, cost

    grads, cost = jax.grad(objective, has_aux=True)(tau)
    updates, state = optimizer.update(grads, state, tau)
    tau = optax.apply_updates(tau, updates)
    return tau, state, cost

  state = optimizer.init(tau)
  num_pairs = len(train.tokens) // 2
  size = min(config.batch_size, num_pairs)
  with progress.progress_bar(config.edge_steps, 0, description) as bar:
    for i in range(config.edge_steps):
      rows = np.random.default_rng((seed, i)).choice(num_pairs, size, False)
      rows = np.r_[rows, rows + num_pairs]
      batch = sequences_lib.Sequences(*(x[rows] for x in train))
      tau, state, cost = step(tau, state, batch, params, means, nodes, allowed)
      bar.update()
    bar.set_postfix(edges=int(cost))
  return _discretise(judge, candidate, kept, tau, state, target)


def score_edges(
  judge: thresholding.Judge,
  nodes: hooks.SiteArrays,
  gates: edges_lib.EdgeArrays,
) -> thresholding.Scores:
  """Returns the `discretise.Scores` of several edge masks.

  Like `discretise.score_masks`, with the nodes fixed and `gates` by matrix
  `[masks, layer, in, out]`.
  """
  return _score_edges(
    judge.model,
    judge.shifts,
    judge.freeze_norms,
    judge.params,
    judge.means,
    nodes,
    gates,
    judge.sequences,
  )


@functools.partial(jax.jit, static_argnames=("model", "shifts", "freeze_norms"))
def _score_edges(
  model, shifts, freeze_norms, params, means, nodes, gates, sequences
):
  hook = hooks.circuit_hook(
    model,
    params,
    sequences.tokens,
    sequences.positions,
    nodes,
    means,
    freeze_norms,
  )
  diff_of = lambda gate: logit_difference_lib.logit_difference(
    model, edges_lib.mask_edges(params, gate, means), sequences, hook
  )
  diffs_MxS = jax.lax.map(diff_of, gates)
  return thresholding.score_diffs(diffs_MxS, sequences, shifts)


def _discretise(judge, candidate, kept, tau, state, target):
  moments = optax.tree.get(state, "mu")
  flat = lambda tree: np.concatenate([np.ravel(tree[p]) for p in kept])
  is_edge = flat(kept)
  order = np.lexsort((flat(moments), -flat(tau)))
  order = order[is_edge[order]]
  if not len(order):
    return kept
  nodes = thresholding.jnp_mask(candidate.node_mask)
  shapes = {path: keep.shape for path, keep in kept.items()}

  def masks(counts):
    rank = np.full(len(is_edge), len(order))
    rank[order] = np.arange(len(order))
    keep = rank[None] < np.asarray(counts)[:, None]
    # Weights that are no edges stay: closed sources carry their means anyway.
    return masks_lib.unflatten(shapes, keep | ~is_edge[None])

  def losses_of(counts):
    gates = {p: m.astype(np.float32) for p, m in masks(counts).items()}
    scores = score_edges(judge, nodes, gates)
    return np.asarray(scores.losses)

  count = thresholding.smallest_count(
    losses_of, len(order), target, max(1, len(order) * 2 // 3)
  )
  padded = np.resize(np.array([count]), _MASKS_PER_CALL)
  if losses_of(padded)[0] > target:
    return None
  needed = masks([count])
  return {p: needed[p][0] & kept[p] for p in kept}


def as_gates(
  params: transformer.Params,
  node_mask: Mapping[str, np.ndarray],
  needed: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns 0 for the circuit's edges that are not needed, 1 elsewhere."""
  kept = edges_lib.kept_edges(params, node_mask)
  return {p: (needed[p] | ~kept[p]).astype(np.float32) for p in kept}


def mark_edges(edges: list[dict], needed: Mapping[str, np.ndarray]) -> None:
  """Writes "essential" into a circuit's edges, as circuit.json has them."""
  kinds = {kind.name: kind for kind in sites.EDGE_KINDS}
  for edge in edges:
    kind = kinds[edge["kind"]]
    layer = int(edge["from"]["site"].split(".")[0])
    width = needed[kind.matrix].shape[-1] // kind.num_blocks
    column = kind.block * width + edge["to"]["index"]
    edge["essential"] = bool(
      needed[kind.matrix][layer, edge["from"]["index"], column]
    )


@dataclasses.dataclass(frozen=True)
class EdgeFigures:
  """A circuit's figures with only the needed edges open."""

  num_essential_edges: int
  essential_edges_test_loss: float
  essential_edges_test_accuracy: float


def measure(
  judge: thresholding.Judge,
  node_mask: Mapping[str, np.ndarray],
  needed: Mapping[str, np.ndarray],
  test: sequences_lib.Sequences,
) -> EdgeFigures:
  """Returns the figures on test pairs; calibrated on the judge's."""
  gates = as_gates(judge.params, node_mask, needed)
  nodes = thresholding.jnp_mask(node_mask)

  @jax.jit
  def difference_function(params, means, gates, nodes, sequences):
    masked = edges_lib.mask_edges(params, gates, means)
    hook = judge.hook(params, sequences, nodes, means)
    return logit_difference_lib.logit_difference(
      judge.model, masked, sequences, hook
    )

  diff_of = lambda sequences: difference_function(
    judge.params, judge.means, gates, nodes, sequences
  )

  sign = lambda s: logit_difference_lib.answer_sign(s.correct, s.incorrect)
  fitted = judge.sequences
  found = calibrate.fit(diff_of(fitted), sign(fitted), judge.shifts)
  diff = logit_difference_lib.calibrate(diff_of(test), sign(test), found)
  return EdgeFigures(
    num_essential_edges=sum(int(np.sum(m)) for m in needed.values()),
    essential_edges_test_loss=float(logit_difference_lib.task_loss(diff)),
    essential_edges_test_accuracy=float(
      logit_difference_lib.task_accuracy(diff)
    ),
  )
