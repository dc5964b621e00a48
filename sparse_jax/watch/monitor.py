"""What a model's circuits say of prompts, in batches, and what is alarming.

A circuit applies to a prompt where the model's likeliest next token is one of
its answers. There the circuit runs by itself and the model without it;
elsewhere the model alone runs.

Axes: B prompts, L positions, V vocabulary, P pairs of answers, R prompts that a
circuit applies to, N nodes of one site, F values of nodes.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import explain, faithfulness, programs, sites
from sparse_jax.model import hooks, transformer
from sparse_jax.model import program as program_lib
from sparse_jax.tasks import evaluation, mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors
from sparse_jax.watch import thresholds as thresholds_lib

ALARMS = thresholds_lib.ALARMS
_ROWS = (8, 64)  # That programs are compiled for.
# What is read of a prompt, in tokens, where the model sets no limit.
_LONGEST = 4096
_DIGITS = 4


class Outlook(NamedTuple):
  """The whole model on B prompts, at their last token."""

  top: np.ndarray  # `[B]`, the likeliest next token.
  probability: np.ndarray  # `[B]`, of that token.
  entropy: np.ndarray  # `[B]`, of the next token, in nats.
  residual: np.ndarray  # `[B, D]`, the stream before the last norm.


class Reading(NamedTuple):
  """One circuit on the R prompts that it applies to.

  Differences are the logit of the model's answer minus the other one's, in
  nats, so that the model's own is never negative.
  """

  rows: np.ndarray  # `[R]`, which prompts.
  answers: np.ndarray  # `[R, 2]` tokens; the model's answer comes first.
  mass: np.ndarray  # `[R]`, the model's probability of the two together.
  full: np.ndarray  # `[R]`, the whole model's difference.
  circuit: np.ndarray  # `[R]`, the circuit's by itself, as it is calibrated.
  without: np.ndarray  # `[R]`, the model's without the circuit.
  nodes: np.ndarray  # `[R, F]`, its nodes in the whole model.

  def scores(
    self, thresholds: thresholds_lib.Thresholds | None
  ) -> dict[str, np.ndarray]:
    """Returns scores `[R]` by alarm, the larger the more alarming.

    "disagreement": by how much the circuit prefers the other answer, in nats.
    "outside": the share of the model's difference that is left without the
    circuit. "range": how far its nodes are out of range; needs thresholds.
    """
    # Of no difference at all, all may come from outside.
    outside_R = np.where(self.full > 0, 1 - self.share, np.inf)
    found = {"disagreement": -self.circuit, "outside": outside_R}
    if thresholds is not None:
      found["range"] = thresholds.distance(self.nodes)
    return found

  @property
  def share(self) -> np.ndarray:
    """The share of the model's difference that goes with the circuit, `[R]`.

    NaN where the model prefers neither.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
      share_R = (self.full - self.without) / self.full
    return np.where(self.full > 0, share_R, np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class _Watched:
  """A circuit as it is watched."""

  circuit: circuit_lib.Circuit
  answers_Px2: np.ndarray
  nodes: Mapping[str, np.ndarray]  # By full site name, channels `[N]`.
  means: Mapping[str, np.ndarray]  # Their ablation values.
  evaluator: mask_evaluator.MaskEvaluator  # On no prompts yet.
  program: program_lib.Program | None  # Of its answers; not calibrated.
  thresholds: thresholds_lib.Thresholds | None


class Monitor:
  """Watches a model by its circuits.

  `monitor(prompts)` returns a record a prompt, as `experiments.watch` writes
  it; `measure` returns arrays.
  """

  def __init__(
    self,
    model: transformer.Model,
    params: transformer.Params,
    circuits: Mapping[str, circuit_lib.Circuit],
    tokenizer=None,
  ):
    """Prepares to watch.

    Args:
      model: the model.
      params: the model's.
      circuits: by name, such as `load_circuits` returns. Those that came with
        thresholds sound alarms; others have scores alone.
      tokenizer: the model's; without it prompts are rows of tokens, and so are
        the answers in records.

    Raises:
      InputError: if a circuit is another model's or was edited, or its
        thresholds are another circuit's, or neither they nor a tokenizer say
        which tokens its answers are.
    """
    self.model, self.tokenizer = model, tokenizer
    self.params = jax.tree.map(jnp.asarray, params)
    self._watched = {
      name: self._prepare(name, circuit) for name, circuit in circuits.items()
    }

  @property
  def thresholds(self) -> dict[str, thresholds_lib.Thresholds | None]:
    """What is usual for each circuit; None where nothing says so."""
    return {name: w.thresholds for name, w in self._watched.items()}

  @property
  def answers(self) -> dict[str, np.ndarray]:
    """The pairs of answers of each circuit, tokens `[P, 2]`."""
    return {name: w.answers_Px2 for name, w in self._watched.items()}

  def __call__(
    self, prompts: Sequence[str] | Sequence[Sequence[int]]
  ) -> list[dict[str, Any]]:
    """Returns what is to be said of each prompt, plain values fit for JSON.

    Raises InputError for a prompt that is empty or holds no tokens of the
    model, and for a text without a tokenizer.
    """
    encoded = [self.encode(prompt) for prompt in prompts]
    outlook, readings = self.measure(encoded)
    records = [
      {
        "num_tokens": len(tokens),
        "next": self._text(outlook.top[i]),
        "probability": _rounded(outlook.probability[i]),
        "entropy": _rounded(outlook.entropy[i]),
        "alarms": [],
        "circuits": [],
      }
      for i, tokens in enumerate(encoded)
    ]
    for name, reading in readings.items():
      for row, said in zip(reading.rows, self._say(name, reading), strict=True):
        records[row]["circuits"].append(said)
    for record in records:
      sound = {a for said in record["circuits"] for a in said["alarms"] or ()}
      record["alarms"] = [alarm for alarm in ALARMS if alarm in sound]
    return records

  def encode(self, prompt: str | Sequence[int]) -> list[int]:
    """Returns the tokens of a prompt; raises InputError as `__call__` does."""
    if isinstance(prompt, str):
      if self.tokenizer is None:
        raise errors.InputError(
          f"prompt {prompt[:40]!r} is text; without a tokenizer need tokens"
        )
      try:
        prompt = self.tokenizer.encode(prompt)
      except (TypeError, UnicodeError) as e:  # Half a surrogate pair.
        raise errors.InputError(
          f"prompt {prompt[:40]!r} cannot be encoded; need Unicode text"
        ) from e
    size = self.model.config.vocab_size
    tokens = list(prompt)
    if not tokens:
      raise errors.bad_value("prompt", "", "at least one token")
    for token in tokens:
      if isinstance(token, bool) or not isinstance(token, int | np.integer):
        raise errors.bad_value("prompt", token, "text, or tokens")
      if not 0 <= token < size:
        raise errors.bad_value("token", token, f"0 to {size - 1}")
    return tokens

  def measure(
    self,
    prompts: Sequence[Sequence[int]],
    names: Collection[str] | None = None,
  ) -> tuple[Outlook, dict[str, Reading]]:
    """Returns the model's outlook on prompts and the circuits' readings.

    Of a prompt longer than the model's context its last tokens are read.
    `names` are the circuits that are wanted; None is all.
    """
    limit = self.context_length
    prompts = [row[-limit:] for row in prompts]
    found: list[tuple[np.ndarray, _Whole]] = [
      (rows, self._whole(_padded(prompts, rows, limit)))
      for rows in _batches(prompts, range(len(prompts)), limit)
    ]
    whole = _in_order(len(prompts), found, self._whole_of_none)
    readings = {
      name: self._read(watched, prompts, limit, whole, i)
      for i, (name, watched) in enumerate(self._watched.items())
      if names is None or name in names
    }
    return whole.outlook, readings

  def _prepare(self, name: str, circuit: circuit_lib.Circuit) -> _Watched:
    faithfulness.check_circuit(self.model, self.params, circuit)
    thresholds = thresholds_lib.read(name, circuit)
    if self.tokenizer is not None:
      pairs = explain.answer_pairs(circuit)
      answers = programs.find_answers(pairs, self.tokenizer)
      answers_Px2 = np.array(answers.tokens, np.int32)[list(answers.pairs)]
    elif thresholds is not None:
      answers_Px2 = thresholds.answers
    else:
      raise errors.InputError(
        f"circuit {name} has no thresholds, which say what its answers are;"
        " need a tokenizer"
      )
    nodes, means = {}, {}
    for site, mask in circuit.node_mask.items():
      for row in np.flatnonzero(mask.any(1)):
        full_name = sites.site_id(site, int(row))
        nodes[full_name] = np.flatnonzero(mask[row])
        means[full_name] = np.asarray(circuit.means[site])[row, mask[row]]
    # As a compiled function orders a dict, so that thresholds fit anywhere.
    nodes = dict(sorted(nodes.items()))
    evaluator = circuit.evaluator(self.params, None).with_means(
      jax.tree.map(jnp.asarray, dict(circuit.means))
    )
    program = _program(circuit, self.params, answers_Px2)
    return _Watched(
      circuit, answers_Px2, nodes, means, evaluator, program, thresholds
    )

  @property
  def context_length(self) -> int:
    """How many tokens of a prompt are read at most."""
    return self.model.config.context_length or _LONGEST

  @property
  def _parts(self):
    """What the compiled run of the whole model reads of each circuit."""
    return tuple(
      (w.answers_Px2, w.nodes, w.means) for w in self._watched.values()
    )

  def _whole(self, batch: "_Batch") -> "_Whole":
    found = _run_whole(self.model, self.params, *batch, self._parts)
    return jax.tree.map(np.asarray, found)

  @property
  def _whole_of_none(self) -> "_Whole":
    """The run of no prompts: what its arrays' widths and kinds are."""
    none = _Batch(np.zeros((1, 1), np.int32), np.zeros(1, np.int32))
    run = functools.partial(_run_whole, self.model)
    shapes = jax.eval_shape(run, self.params, *none, self._parts)
    return jax.tree.map(lambda s: np.zeros((0, *s.shape[1:]), s.dtype), shapes)

  def _read(self, watched, prompts, limit, whole, i) -> Reading:
    """Returns the reading of circuit `i` of those that are watched."""
    pairs_Px2, top_B = watched.answers_Px2, whole.outlook.top
    log_p_BxPx2 = whole.answer_log_p[i].astype(np.float64)
    has_top_BxP = (pairs_Px2 == top_B[:, None, None]).any(-1)
    rows = np.flatnonzero(has_top_BxP.any(-1))
    mass_RxP = np.exp(log_p_BxPx2[rows]).sum(-1)
    best_R = np.where(has_top_BxP[rows], mass_RxP, -1).argmax(-1)
    pick = np.arange(len(rows)), best_R
    pair_Rx2, log_p_Rx2 = pairs_Px2[best_R], log_p_BxPx2[rows][pick]
    # The model's own answer first.
    order_Rx2 = np.where(
      pair_Rx2[:, :1] == top_B[rows, None], [[0, 1]], [[1, 0]]
    )
    answers_Rx2 = np.take_along_axis(pair_Rx2, order_Rx2, 1)
    log_p_Rx2 = np.take_along_axis(log_p_Rx2, order_Rx2, 1)
    at = {row: r for r, row in enumerate(rows.tolist())}
    both_Rx2 = np.zeros((len(rows), 2))
    for some in _batches(prompts, rows, limit):
      batch, of = (
        _padded(prompts, some, limit),
        [at[row] for row in some.tolist()],
      )
      both_Rx2[of] = _differences(watched, batch, answers_Rx2[of])[: len(some)]
    return Reading(
      rows=rows,
      answers=answers_Rx2,
      mass=mass_RxP[pick],
      full=log_p_Rx2[:, 0] - log_p_Rx2[:, 1],
      circuit=both_Rx2[:, 0],
      without=both_Rx2[:, 1],
      nodes=whole.nodes[i][rows],
    )

  def _say(self, name: str, reading: Reading) -> list[dict[str, Any]]:
    thresholds = self._watched[name].thresholds
    scores = reading.scores(thresholds)
    said = []
    for r, (own, other) in enumerate(reading.answers.tolist()):
      alarms = thresholds and [
        alarm for alarm in ALARMS if scores[alarm][r] > thresholds.limits[alarm]
      ]
      agrees = bool(reading.circuit[r] >= 0)
      said.append(
        {
          "circuit": name,
          "answers": [self._text(own), self._text(other)],
          "mass": _rounded(reading.mass[r]),
          "model": self._text(own),
          "prefers": self._text(own if agrees else other),
          "model_difference": _rounded(reading.full[r]),
          "circuit_difference": _rounded(reading.circuit[r]),
          "without_difference": _rounded(reading.without[r]),
          "share": _rounded(reading.share[r]),
          "distance": _rounded(scores["range"][r]) if thresholds else None,
          "alarms": alarms,
        }
      )
    return said

  def _text(self, token) -> str | int:
    token = int(token)
    return token if self.tokenizer is None else self.tokenizer.token_text(token)


def _rounded(value) -> float | None:
  value = float(value)
  return round(value, _DIGITS) if np.isfinite(value) else None


class _Batch(NamedTuple):
  """Prompts of about one length, as a program takes them."""

  tokens: np.ndarray  # `[B, L]`, right-padded.
  positions: np.ndarray  # `[B]`, of the last token.


class _Whole(NamedTuple):
  """What one run of the whole model gives, with an entry a circuit."""

  outlook: Outlook
  answer_log_p: tuple[Any, ...]  # Each `[B, P, 2]`, in nats.
  nodes: tuple[Any, ...]  # Each `[B, F]`.


def batches(prompts: Sequence[Sequence[int]], limit: int):
  """Yields prompts as (tokens `[B, L]`, positions `[B]`), by length.

  Of each the last `limit` tokens, in one of the shapes that a monitor runs.
  """
  prompts = [row[-limit:] for row in prompts]
  for rows in _batches(prompts, range(len(prompts)), limit):
    yield _padded(prompts, rows, limit)


def _batches(prompts, rows, limit: int):
  """Yields rows of prompts of about one length, at most `_ROWS[-1]`."""
  rows = np.asarray(rows, int)
  width_of = lambda row: evaluation.padded_width(len(prompts[row]), limit)
  widths = np.array([width_of(row) for row in rows])
  for width in np.unique(widths):
    same = rows[widths == width]
    for start in range(0, len(same), _ROWS[-1]):
      yield same[start : start + _ROWS[-1]]


def _padded(prompts, rows, limit: int) -> _Batch:
  """Returns prompts as a batch of one of few shapes; the last ones repeat."""
  count = next(size for size in _ROWS if size >= len(rows))
  lengths = np.array([len(prompts[row]) for row in np.resize(rows, count)])
  # A causal model does not see what is padded behind the last token.
  width = evaluation.padded_width(int(lengths.max()), limit)
  tokens = np.zeros((count, width), np.int32)
  for i, row in enumerate(np.resize(rows, count)):
    tokens[i, : lengths[i]] = prompts[row]
  return _Batch(tokens, (lengths - 1).astype(np.int32))


def _in_order(count: int, found, none: _Whole) -> _Whole:
  """Returns runs of some prompts each as one of all, in the prompts' order."""

  def join(empty, *parts):
    joined = np.empty((count, *empty.shape[1:]), empty.dtype)
    for (rows, _), part in zip(found, parts, strict=True):
      joined[rows] = part[: len(rows)]
    return joined

  return jax.tree.map(join, none, *(whole for _, whole in found))


@functools.partial(jax.jit, static_argnames="model")
def _run_whole(model, params, tokens_BxL, positions_B, parts) -> _Whole:
  store: dict[str, jax.Array] = {}
  names = {name for _, nodes, _ in parts for name in nodes}
  hook = hooks.record(store, names)
  x_BxD = model.residual(params, tokens_BxL, hook, positions_B)[:, 0]
  last_B = tokens_BxL[jnp.arange(len(tokens_BxL)), positions_B]
  logits_BxV = model.unembed(params, x_BxD, last_B)
  log_p_BxV = jax.nn.log_softmax(logits_BxV)
  p_BxV = jnp.exp(log_p_BxV)
  outlook = Outlook(
    top=jnp.argmax(logits_BxV, -1),
    probability=jnp.max(p_BxV, -1),
    entropy=-jnp.sum(p_BxV * log_p_BxV, -1),
    residual=x_BxD.astype(jnp.float32),
  )
  return _Whole(
    outlook,
    tuple(log_p_BxV[:, pairs_Px2] for pairs_Px2, _, _ in parts),
    tuple(_values(store, positions_B, *part[1:]) for part in parts),
  )


def _values(store, positions_B, nodes, means) -> jax.Array:
  """Returns each node's value at the last token and at its peak, `[B, F]`.

  The peak is where it is furthest from its ablation value. The last layer may
  have been run at the last token alone.
  """
  parts = [jnp.zeros((len(positions_B), 0))]
  for name, index_N in nodes.items():
    x_BxLxN = store[name][..., index_N].astype(jnp.float32)
    length = x_BxLxN.shape[1]
    at_B = positions_B if length > 1 else jnp.zeros_like(positions_B)
    seen_BxLx1 = (jnp.arange(length) <= at_B[:, None])[..., None]
    far_BxLxN = jnp.where(seen_BxLx1, jnp.abs(x_BxLxN - means[name]), -1)
    peak_Bx1xN = jnp.argmax(far_BxLxN, 1, keepdims=True)
    take = lambda at, x=x_BxLxN: jnp.take_along_axis(x, at, 1)[:, 0]
    parts += [take(at_B[:, None, None]), take(peak_Bx1xN)]
  return jnp.concatenate(parts, -1)


def _differences(watched, batch: _Batch, answers_Rx2) -> np.ndarray:
  """Returns differences of circuit and of model without it, `[rows, 2]`."""
  circuit = watched.circuit
  answers_Rx2 = np.resize(answers_Rx2, (len(batch.positions), 2))
  own_R, other_R = answers_Rx2.T
  sequences = sequences_lib.Sequences(
    *batch, own_R, other_R, np.zeros_like(own_R)
  )
  on = watched.evaluator.on(sequences)
  without_R = on.logit_difference({n: ~m for n, m in circuit.node_mask.items()})
  if watched.program is None:
    alone_R = on.logit_difference(circuit.node_mask)
  else:
    logits_RxC = np.asarray(watched.program(*batch))[:, 0]
    rows, tokens_C = np.arange(len(own_R)), watched.program.answers
    logit = lambda token_R: logits_RxC[rows, np.searchsorted(tokens_C, token_R)]
    alone_R = logit(own_R) - logit(other_R)
  return np.stack([circuit.calibrated(alone_R, sequences), without_R], -1)


def _program(circuit, params, answers_Px2) -> program_lib.Program | None:
  """Returns a circuit's own program; None if it cannot be one.

  It takes a fraction of the time of the whole model with all else closed.
  """
  plain = dataclasses.replace(circuit, logit_scale=1.0)
  try:
    return plain.compact(params, np.unique(answers_Px2))
  except errors.InputError:
    return None
