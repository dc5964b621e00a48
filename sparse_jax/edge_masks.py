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

from sparse_jax import calibrate, discretise, metrics, prune, sites
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import model as model_lib

# By matrix path, `[layer, in, out]` like the matrix.
EdgeArrays = Mapping[str, jax.Array]

_EDGE_COST = 1e-3
_MASKS_PER_CALL = 8


def kept_edges(
  params: model_lib.Params, node_mask: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns, by matrix, which weights are edges between kept nodes."""
  found: dict[str, np.ndarray] = {}
  for kind in sites.EDGE_KINDS:
    weight = circuit_lib.edge_weights(kind, params, node_mask)
    matrix = np.asarray(circuit_lib.parameter(params, kind.matrix))
    keep = found.setdefault(kind.matrix, np.zeros(matrix.shape, bool))
    width = matrix.shape[-1] // kind.num_blocks
    block = slice(kind.block * width, (kind.block + 1) * width)
    keep[..., block] |= weight != 0
  return found


def mask_edges(
  params: model_lib.Params, gates: EdgeArrays, means: prune.SiteArrays
) -> model_lib.Params:
  """Returns parameters whose closed edges carry their source's mean.

  Args:
    params: the model's; every masked matrix needs a bias beside it.
    gates: by matrix path, 1 for open and 0 for closed edges.
    means: ablation values, per site `[layers, width]`.
  """
  masked = params
  for path, gate in gates.items():
    source = next(k.source for k in sites.EDGE_KINDS if k.matrix == path)
    kernel = circuit_lib.parameter(params, path)
    closed = kernel * (1 - gate)
    constant = jnp.einsum("lio,li->lo", closed, means[source])
    group = path.rpartition("/")[0]
    linear = dict(circuit_lib.parameter(params, group))
    linear["kernel"] = kernel * gate
    linear["bias"] = linear.get("bias", 0.0) + constant
    masked = _replaced(masked, group.split("/"), linear)
  return masked


def _replaced(tree, path, value):
  if not path:
    return value
  return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}


def find_needed(
  judge: discretise.Judge,
  candidate: discretise.Candidate,
  train: prune.Sequences,
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
  kept = kept_edges(judge.params, candidate.node_mask)
  nodes = discretise.jnp_mask(candidate.node_mask)
  allowed = {path: jnp.asarray(keep) for path, keep in kept.items()}
  tau = {p: jnp.where(keep, 0.3, -1.0) for p, keep in allowed.items()}
  setting = prune.Setting(
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
  optimizer = prune.mask_optimizer(setting, config.edge_steps)
  model, params, means = judge.model, judge.params, judge.means
  scale = candidate.calibration.scale

  @jax.jit
  def step(tau, state, batch, params, means, nodes, allowed):
    def objective(tau):
      gates = {
        p: jnp.where(allowed[p], prune.gate(t, setting.temperature), 1.0)
        for p, t in tau.items()
      }
      masked = mask_edges(params, gates, means)
      tap = judge.tap(params, batch, nodes, means)
      gap = prune.answer_gap(model, masked, batch, tap)
      cost = sum(jnp.sum(g * allowed[p]) for p, g in gates.items())
      return prune.gap_loss(gap, scale) + setting.k_coef * cost, cost

    grads, cost = jax.grad(objective, has_aux=True)(tau)
    updates, state = optimizer.update(grads, state, tau)
    tau = optax.apply_updates(tau, updates)
    return tau, state, cost

  state = optimizer.init(tau)
  num_pairs = len(train.tokens) // 2
  size = min(config.batch_size, num_pairs)
  with metrics.progress_bar(config.edge_steps, 0, description) as bar:
    for i in range(config.edge_steps):
      rows = np.random.default_rng((seed, i)).choice(num_pairs, size, False)
      rows = np.r_[rows, rows + num_pairs]
      batch = prune.Sequences(*(x[rows] for x in train))
      tau, state, cost = step(tau, state, batch, params, means, nodes, allowed)
      bar.update()
    bar.set_postfix(edges=int(cost))
  return _discretise(judge, candidate, kept, tau, state, target)


def score_edges(
  judge: discretise.Judge, nodes: prune.SiteArrays, gates: EdgeArrays
) -> discretise.Scores:
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
  tap = prune.circuit_tap(model, params, sequences, nodes, means, freeze_norms)
  gap_of = lambda gate: prune.answer_gap(
    model, mask_edges(params, gate, means), sequences, tap
  )
  gaps_MxS = jax.lax.map(gap_of, gates)
  return discretise.score_gaps(gaps_MxS, sequences, shifts)


def _discretise(judge, candidate, kept, tau, state, target):
  moments = optax.tree.get(state, "mu")
  flat = lambda tree: np.concatenate([np.ravel(tree[p]) for p in kept])
  is_edge = flat(kept)
  order = np.lexsort((flat(moments), -flat(tau)))
  order = order[is_edge[order]]
  if not len(order):
    return kept
  nodes = discretise.jnp_mask(candidate.node_mask)
  shapes = {path: keep.shape for path, keep in kept.items()}

  def masks(counts):
    rank = np.full(len(is_edge), len(order))
    rank[order] = np.arange(len(order))
    keep = rank[None] < np.asarray(counts)[:, None]
    # Weights that are no edges stay: closed sources carry their means anyway.
    return prune.unflatten(shapes, keep | ~is_edge[None])

  def losses_of(counts):
    gates = {p: m.astype(np.float32) for p, m in masks(counts).items()}
    scores = score_edges(judge, nodes, gates)
    return np.asarray(scores.losses)

  count = discretise.smallest_count(
    losses_of, len(order), target, max(1, len(order) * 2 // 3)
  )
  padded = np.resize(np.array([count]), _MASKS_PER_CALL)
  if losses_of(padded)[0] > target:
    return None
  needed = masks([count])
  return {p: needed[p][0] & kept[p] for p in kept}


def as_gates(
  params: model_lib.Params,
  node_mask: Mapping[str, np.ndarray],
  needed: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns 0 for the circuit's edges that are not needed, 1 elsewhere."""
  kept = kept_edges(params, node_mask)
  return {p: (needed[p] | ~kept[p]).astype(np.float32) for p in kept}


def mark_edges(edges: list[dict], needed: Mapping[str, np.ndarray]) -> None:
  """Writes "needed" into a circuit's edges, as circuit.json has them."""
  kinds = {kind.name: kind for kind in sites.EDGE_KINDS}
  for edge in edges:
    kind = kinds[edge["kind"]]
    layer = int(edge["from"]["site"].split(".")[0])
    width = needed[kind.matrix].shape[-1] // kind.num_blocks
    column = kind.block * width + edge["to"]["index"]
    edge["needed"] = bool(
      needed[kind.matrix][layer, edge["from"]["index"], column]
    )


@dataclasses.dataclass(frozen=True)
class EdgeFigures:
  """A circuit's figures with only the needed edges open."""

  num_needed_edges: int
  needed_edges_test_loss: float
  needed_edges_test_accuracy: float


def measure(
  judge: discretise.Judge,
  node_mask: Mapping[str, np.ndarray],
  needed: Mapping[str, np.ndarray],
  test: prune.Sequences,
) -> EdgeFigures:
  """Returns the figures on test pairs; calibrated on the judge's."""
  gates = as_gates(judge.params, node_mask, needed)
  nodes = discretise.jnp_mask(node_mask)

  @jax.jit
  def gap_function(params, means, gates, nodes, sequences):
    masked = mask_edges(params, gates, means)
    tap = judge.tap(params, sequences, nodes, means)
    return prune.answer_gap(judge.model, masked, sequences, tap)

  gap_of = lambda sequences: gap_function(
    judge.params, judge.means, gates, nodes, sequences
  )

  sign = lambda s: calibrate.answer_sign(s.right, s.wrong)
  fitted = judge.sequences
  found = calibrate.fit(gap_of(fitted), sign(fitted), judge.shifts)
  gap = calibrate.calibrate(gap_of(test), sign(test), found)
  return EdgeFigures(
    num_needed_edges=sum(int(np.sum(m)) for m in needed.values()),
    needed_edges_test_loss=float(prune.gap_loss(gap)),
    needed_edges_test_accuracy=float(prune.gap_accuracy(gap)),
  )
