"""Steering: one node of the sparse model, moved, and the dense model's answer.

A node goes from its value on one side of a task toward its value on the other;
the first bridge behind it decodes what that changes in the sparse model's
residual stream, and the dense model goes on with the sum (paper, figure 9).

Axes: S sequences, L position, K strengths, D residual, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax import tasks as tasks_lib
from sparse_jax.bridge import directory as directory_lib
from sparse_jax.bridge import maps
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

Node = str | Mapping[str, Any]
NODE, CONTROLS = "node", ("random_node", "random_direction")


class _Place(NamedTuple):
  """A site in a layer."""

  site: str
  layer: int | None

  @property
  def name(self) -> str:
    return sites.site_id(*self)


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
  """What the dense model answers while one node of the sparse one is moved.

  Attributes:
    node: such as "0.mlp.post_act:3".
    strengths: `[K]`, 0 for the prompt's own value, 1 for the other side's.
    probability: `[K, S]`, the other side's answer, among all tokens.
    logit_difference: `[K, S]`, own answer's logit minus the other's, in nats.
  """

  node: str
  strengths: np.ndarray
  probability: np.ndarray
  logit_difference: np.ndarray

  @property
  def moved(self) -> float:
    """How far the mean probability moves, from first to last strength."""
    first, *_, last = (*np.mean(self.probability, 1),)
    return float(last - first)


def steer(
  bridge: directory_lib.Bridge,
  node: Node,
  strength: float | Sequence[float],
  task: str | tasks_lib.Pairs = "single_double_quote",
) -> Steering:
  """Returns the dense model's answers with one node moved by each strength.

  Args:
    bridge: of the models.
    node: "0.mlp.post_act:3", or as `Circuit.nodes` has it, of the sparse model.
    strength: how far from the prompt's own value to the other side's, 0 to 1;
      one, or several.
    task: its name, of which 32 test pairs are taken, or pairs. Those whose
      sides differ in length are left out.

  Raises:
    InputError: for a node that the sparse model does not have, or a task
      without pairs of equal sides.
  """
  return curves(bridge, node, strength, (NODE,), task)[NODE]


def control(
  bridge: directory_lib.Bridge,
  node: Node,
  strength: float | Sequence[float],
  kind: str,
  task: str | tasks_lib.Pairs = "single_double_quote",
  seed: int = 0,
) -> Steering:
  """Returns `steer` with another change of equal size in the dense model.

  "random_node" moves another node of the same site, one that is active on the
  prompts, by as much; "random_direction" takes one direction of the dense
  residual stream. Either is scaled at every token to the norm of the change
  that the node itself makes; one that changes nothing at a token stays so.
  """
  if kind not in CONTROLS:
    raise errors.unknown_name("control", kind, CONTROLS)
  return curves(bridge, node, strength, (kind,), task, seed)[kind]


def curves(
  bridge: directory_lib.Bridge,
  node: Node,
  strength: float | Sequence[float],
  kinds: Sequence[str] = (NODE, *CONTROLS),
  task: str | tasks_lib.Pairs = "single_double_quote",
  seed: int = 0,
) -> dict[str, Steering]:
  """Returns `steer`, as "node", and its `control`s, by kind."""
  place, index = parse_node(bridge, node)
  pairs = aligned_pairs(bridge, task)
  strengths_K = np.atleast_1d(np.asarray(strength, np.float32))
  arrays = bridge.arrays
  change = _changes(arrays, place, index, strengths_K, pairs)
  found = {}
  for kind in kinds:
    other = change
    if kind == "random_direction":
      key = jax.random.key(seed)
      other = jax.random.normal(key, change.shape[-1:]) + jnp.zeros_like(change)
    elif kind == "random_node":
      moved = _active_node(arrays, place, index, pairs, seed)
      other = _changes(arrays, place, index, strengths_K, pairs, moved)
    if kind != NODE:
      norm = lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)
      other *= norm(change) / jnp.maximum(norm(other), 1e-12)
    answers = _answers(arrays, _behind(arrays, place), other, pairs)
    name = f"{place.name}:{index}" if kind == NODE else kind
    found[kind] = Steering(name, strengths_K, *map(np.asarray, answers))
  return found


def parse_node(bridge: directory_lib.Bridge, node: Node) -> tuple[_Place, int]:
  """Returns a node's site and index; raises InputError for an unknown one."""
  if isinstance(node, Mapping):
    node = f"{node.get('site')}:{node.get('index')}"
  name, _, index = str(node).rpartition(":")
  config = bridge.span.sparse.config
  site, layer = sites.parse_site_id(name, config.n_layer)
  if site not in sites.NODE_SITES:
    raise errors.unknown_name("site of nodes", site, sites.NODE_SITES)
  width = config.width(site)
  if not index.isdecimal() or int(index) >= width:
    need = f"{name}:INDEX with an index from 0 to {width - 1}"
    raise errors.bad_value("node", str(node), need)
  return _Place(site, layer), int(index)


def aligned_pairs(
  bridge: directory_lib.Bridge, task: str | tasks_lib.Pairs, count: int = 32
) -> sequences_lib.Sequences:
  """Returns both sides of the pairs whose sides are equally long."""
  pairs = task
  if not isinstance(pairs, tasks_lib.Pairs):
    made = tasks_lib.make_task(pairs, bridge.tokenizer)
    pairs = made.pairs("test", count, at_most=True)
  rows = np.flatnonzero(pairs.lengths == pairs.counter_lengths)
  if not len(rows):
    raise errors.InputError(
      f"task {task!r}: the two sides of every pair differ in length; need pairs"
      " with as many tokens on both"
    )
  return sequences_lib.task_sequences(pairs.take(rows))


def other_side(x: jax.Array) -> jax.Array:
  """Returns for each of `sequences` what its counterpart has."""
  return jnp.roll(x, len(x) // 2, 0)


def _behind(arrays: directory_lib.Arrays, place: _Place) -> int:
  """Returns the first bridge that a site is upstream of, or stands at."""
  points = arrays.span.points
  order = sites.all_site_ids(arrays.span.sparse.config.n_layer)
  after = order.index(place.name)
  return next(i for i, p in enumerate(points) if order.index(p) >= after)


@functools.partial(jax.jit, static_argnums=1)
def _changes(
  arrays, place, index, strengths_K, sequences, moved_index=None
) -> jax.Array:
  """Returns what moving a node changes in the dense state, `[K, S, L, D]`.

  Another node, `moved_index`, may be moved by what `index` would be.
  """
  span, tokens = arrays.span, sequences.tokens
  bridge = _behind(arrays, place)
  behind = span.points[bridge]
  own: dict[str, jax.Array] = {}
  names = {place.name, behind}
  span.sparse.residual(arrays.sparse, tokens, hooks.record(own, names))
  value = jnp.take(own[place.name], index, axis=-1)
  step = other_side(value) - value
  moved_index = index if moved_index is None else moved_index

  def change(strength):
    def move(site, layer, x):
      if (site, layer) != place:
        return x
      return x.at[..., moved_index].add(strength * step)

    found: dict[str, jax.Array] = {}
    hook = hooks.compose(move, hooks.record(found, {behind}))
    span.sparse.residual(arrays.sparse, tokens, hook)
    difference = found[behind] - own[behind]
    return maps.decode_difference(arrays.maps, bridge, difference)

  return jax.lax.map(change, strengths_K)


@functools.partial(jax.jit, static_argnums=1)
def _answers(arrays, bridge, changes_KxSxLxD, sequences):
  """Returns probabilities of the other answer and logit differences `[K, S]`.

  They are the dense model's, with its state changed at the bridge.
  """
  span = arrays.span
  point = span.points[bridge]

  def answers(change_SxLxD):
    def add(site, layer, x):
      return x + change_SxLxD if sites.site_id(site, layer) == point else x

    log_SxV = jax.nn.log_softmax(
      logits_at(span.dense, arrays.dense, sequences, add)
    )
    pick = lambda of: jnp.take_along_axis(log_SxV, of[:, None], 1)[:, 0]
    own, other = pick(sequences.correct), pick(sequences.incorrect)
    return jnp.exp(other), own - other

  return jax.lax.map(answers, changes_KxSxLxD)


def logits_at(
  model: transformer.Model,
  params: transformer.Params,
  sequences: sequences_lib.Sequences,
  hook: transformer.Hook,
) -> jax.Array:
  """Returns the logits `[S, V]` at each sequence's last token."""
  x_SxLxD = model.residual(params, sequences.tokens, hook)
  rows = jnp.arange(len(sequences.positions)), sequences.positions
  return model.unembed(params, x_SxLxD[rows], sequences.tokens[rows])


def _active_node(arrays, place, index, sequences, seed) -> int:
  """Returns another node of a site, an active one if there is any."""
  own: dict[str, jax.Array] = {}
  arrays.span.sparse.residual(
    arrays.sparse, sequences.tokens, hooks.record(own, {place.name})
  )
  is_active = np.any(np.asarray(own[place.name]) != 0, (0, 1))
  is_active[index] = False
  others = np.setdiff1d(np.arange(len(is_active)), [index])
  choices = np.flatnonzero(is_active) if is_active.any() else others
  return int(np.random.default_rng(seed).choice(choices))
