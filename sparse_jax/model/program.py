"""A circuit as a small program: what it holds, and one run in JAX or NumPy.

`shrink.shrink` makes programs of a model, masks and means; only what an open
node's value depends on is left. See its docstring for what that is.

Axes: B batch, L query position, M key position, R residual channel, S source
and T target of a map, N open channel, J channel of a head's scores, C logit,
P position embedding, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.model import top_k, transformer
from sparse_jax.utils import errors

# Open channels of which each is compared with all others, and how many of those
# JAX takes at a time.
_FEW = 4
_TOGETHER = 16


class Site(NamedTuple):
  """The channels of a site that a program computes.

  AbsTopK lets channels compete, so closed ones that may take an open one's
  place are among them: *rivals*.
  """

  channels: np.ndarray  # `[T]`, as the model numbers them, ascending.
  is_open: np.ndarray  # `[T]` bool; the others are rivals.
  k: int | None  # How many AbsTopK keeps; None: all.

  @property
  def opened(self) -> np.ndarray:
    """The open channels, `[N]`."""
    return self.channels[self.is_open]

  @property
  def competes(self) -> bool:
    """Whether AbsTopK decides on an open channel."""
    return self.k is not None and bool(self.is_open.any())

  @property
  def num_rivals(self) -> int:
    """How many closed channels compete."""
    return 0 if self.k is None else int(np.sum(~self.is_open))


class Map(NamedTuple):
  """Weights from open channels to the channels of a site."""

  weight_SxT: np.ndarray
  bias_T: np.ndarray  # Holds what closed sources add at their means.
  site: Site


class Norm(NamedTuple):
  """A norm of the residual stream, of which a program has R channels."""

  scale_R: np.ndarray
  bias_R: np.ndarray | None
  rest_Vx2: np.ndarray | None  # Of the other channels: sum, and of squares.


class Input(NamedTuple):
  """What a sublayer reads."""

  norm: Norm
  position_LxP: np.ndarray | None  # Normed positions, joined behind.
  rivals_VxK: np.ndarray | None  # Of the other channels, before the norm.
  site: Site  # Behind residual channels and positions the rest's rivals.


class Turn(NamedTuple):
  """How rotary positions turn a head's J channels, each with its partner.

  Channels that they leave turn by an angle of 0.
  """

  partner: np.ndarray  # `[J]`, among the J.
  cos_LxJ: np.ndarray
  sin_LxJ: np.ndarray  # Of the first of two partners negative.


class Head(NamedTuple):
  """A head of which a query, key or value is open."""

  index: int
  # `[J]`: of its queries and keys at least one is open, or its partner's is.
  channels: np.ndarray
  q_at: np.ndarray  # `[J]`, among the open queries; their number if closed.
  k_at: np.ndarray
  q_fixed_J: np.ndarray  # A closed query's mean, 0 if it is open.
  k_fixed_J: np.ndarray
  constant: float  # The score of its other channels that nothing turns.
  turned_L: np.ndarray | None  # Of those turned, by the distance of the key.
  turn: Turn | None
  sink: float | None
  v_at: np.ndarray  # Its open values among those of the layer.
  has_share: bool  # Whether closed values pass, times what the sink leaves.


class Uniform(NamedTuple):
  """A closed head with a sink: it looks at all n tokens that it sees alike.

  What the sink leaves of its constant write is `n / (n + odds)`.
  """

  index: int
  log_odds: float


class Attention(NamedTuple):
  """An attention sublayer."""

  input: Input
  query: Map
  key: Map
  value: Map
  window: int | None  # How many keys a query sees; None: all.
  heads: tuple[Head, ...]
  uniform: tuple[Uniform, ...]
  # From open values, then shares of `heads` that have one, then of `uniform`.
  write: Map


class Mlp(NamedTuple):
  """An MLP sublayer."""

  input: Input
  up: Map
  down: Map


class Sublayer(NamedTuple):
  """A sublayer; `body` is None if it writes means alone."""

  body: Attention | Mlp | None
  constant_R: np.ndarray  # What its closed writes add.
  delta_at: np.ndarray  # `[R]`, among the open writes; their number if none.
  k: int | None  # AbsTopK on the stream as the sublayer leaves it.


class Output(NamedTuple):
  """The last norm and the unembedding, in one."""

  is_open: np.ndarray  # `[R]` bool.
  fixed_R: np.ndarray  # Means of the closed ones, else 0.
  norm: Norm
  weight_RxC: np.ndarray  # Times the norm's scale.
  rest_VxC: np.ndarray | None  # Logits of the other channels, before the norm.
  weight_sum_C: np.ndarray  # Over all channels: what a mean of 1 takes away.
  bias_C: np.ndarray
  bigram_VxC: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A circuit's arrays and their run; `program(tokens)` gives logits.

  Attributes:
    config: of the model it was cut from.
    answers: tokens whose logits it gives, `[C]`; None if those of all.
    logit_scale: the circuit's.
    wires: residual channels it holds, `[R]`, ascending.
    embed_VxR: token embedding.
    position_LxR: learned positions, if they are added to it.
    sublayers: attention and MLP in turn.
    output: what follows.
  """

  config: config_lib.ModelConfig
  answers: np.ndarray | None
  logit_scale: float
  wires: np.ndarray
  embed_VxR: np.ndarray
  position_LxR: np.ndarray | None
  sublayers: tuple[Sublayer, ...]
  output: Output

  def __call__(self, tokens: Any, positions_B: Any | None = None) -> jax.Array:
    """Returns logits, float32 `[B, L, C]`, by JAX.

    They are those of `Circuit.apply`, of the answers alone if there are.

    Args:
      tokens: int `[B, L]`.
      positions_B: the only position of each row that is wanted: `[B, 1, C]`.

    Raises:
      InputError: for other tokens.
    """
    tokens = transformer.check_tokens(tokens, self.config.vocab_size)
    self._check_length(tokens)
    return _run_jax(self, tokens, positions_B)

  def numpy(self, tokens: Any, positions_B: Any | None = None) -> np.ndarray:
    """Returns what `__call__` does, by NumPy alone."""
    # The check is JAX's; it takes no part in the computation.
    tokens = np.asarray(
      transformer.check_tokens(tokens, self.config.vocab_size)
    )
    self._check_length(tokens)
    return run(self, tokens, positions_B, NUMPY)

  @property
  def num_values(self) -> int:
    """How many numbers it holds."""
    return sum(leaf.size for leaf in arrays(self) if leaf.dtype.kind == "f")

  @property
  def num_rivals(self) -> int:
    """How many closed channels it computes, for AbsTopK alone."""
    found = (site_of(leaf) for leaf in _parts(self))
    return sum(site.num_rivals for site in found if site is not None)

  def _check_length(self, tokens) -> None:
    c, length = self.config, tokens.shape[1]
    if c.positions != "none" and length > c.context_length:
      raise errors.InputError(
        f"tokens have length {length}; a model with positions takes at most"
        f" model.context_length={c.context_length}"
      )


def arrays(tree: Any) -> list[np.ndarray]:
  """Returns every array of a program or of a part of it."""
  if isinstance(tree, Program):
    tree = tuple(vars(tree).values())
  leaves = jax.tree.leaves(tree)
  return [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]


def _parts(program: Program) -> list[Any]:
  """Returns every `Map` and `Input` of a program."""
  bodies = [s.body for s in program.sublayers if s.body is not None]
  return [x for body in bodies for x in body if isinstance(x, Map | Input)]


def site_of(part: Any) -> Site | None:
  """Returns the site that a part of a program leads to."""
  return getattr(part, "site", None)


class Ops(NamedTuple):
  """What NumPy, JAX and ONNX spell differently."""

  xp: Any
  rows: Callable[[np.ndarray, Any], Any]  # Rows of a table, by index.
  compete: Callable[[Any, Site], Any]  # `[T, ...]` to open `[N, ...]`.
  top_k: Callable[[Any, int], Any]
  squares: Callable[[Any], Any]  # Their sum over the last axis, which stays.
  activations: Mapping[str, Callable[[Any], Any]]  # By name, of MLPs.


def numpy_top_k(x_xT: np.ndarray, k: int) -> np.ndarray:
  """AbsTopK of the last axis by a partition; ties go to the lower index."""
  size_xT = np.abs(x_xT)
  kth_x1 = np.partition(size_xT, -k)[..., -k, None]
  above_xT, tied_xT = size_xT > kth_x1, size_xT == kth_x1
  left_x1 = k - above_xT.sum(-1, keepdims=True)
  kept_xT = above_xT | (tied_xT & (np.cumsum(tied_xT, -1) <= left_x1))
  return np.where(kept_xT, x_xT, np.zeros_like(x_xT))


def numpy_compete(x_TxX: np.ndarray, site: Site) -> np.ndarray:
  """Returns the open channels of AbsTopK over the first axis, `[N, ...]`.

  Few are compared with each other channel; for more a partition is cheaper.
  """
  at_N, size_TxX = np.flatnonzero(site.is_open), np.abs(x_TxX)
  if len(at_N) > _FEW:
    return _numpy_partition(np.moveaxis(x_TxX, 0, -1), at_N, site.k)
  kept_NxX = x_TxX[at_N]
  count = functools.partial(
    np.sum, axis=0, dtype=np.min_scalar_type(len(size_TxX))
  )
  for kept_X, at in zip(kept_NxX, at_N, strict=True):
    rank_X = count((size_TxX[:at] >= size_TxX[at]).view(np.uint8))
    rank_X += count((size_TxX[at + 1 :] > size_TxX[at]).view(np.uint8))
    kept_X[rank_X >= site.k] = 0
  return kept_NxX


def _numpy_partition(x_XxT: np.ndarray, at_N: np.ndarray, k: int) -> np.ndarray:
  x_RxT = x_XxT.reshape(-1, x_XxT.shape[-1])
  own_RxN, size_RxT = x_RxT[:, at_N], np.abs(x_RxT)
  size_RxN = size_RxT[:, at_N]
  size_RxT.partition(size_RxT.shape[-1] - k)
  kth_Rx1 = size_RxT[:, -k, None]
  own_RxN[size_RxN < kth_Rx1] = 0
  # Ties matter where an open channel is the k-th, and another is as large.
  is_tied_R = np.any((size_RxN == kth_Rx1) & (kth_Rx1 > 0), -1)
  is_tied_R &= size_RxT[:, :-k].max(-1) == kth_Rx1[:, 0]
  own_RxN[is_tied_R] = numpy_top_k(x_RxT[is_tied_R], k)[:, at_N]
  return np.moveaxis(own_RxN.reshape(*x_XxT.shape[:-1], len(at_N)), -1, 0)


def jax_compete(x_TxX: jax.Array, site: Site) -> jax.Array:
  """Returns what `numpy_compete` does, by JAX."""
  at_N = np.flatnonzero(site.is_open)
  if len(at_N) > _FEW:
    kept_XxT = top_k.abs_top_k(jnp.moveaxis(x_TxX, 0, -1), site.k)
    return jnp.moveaxis(kept_XxT[..., at_N], -1, 0)
  bits_TxX = top_k.magnitude_bits(x_TxX)
  own_NxX = bits_TxX[at_N]
  # A few channels at a time: all would be a large program, XLA's own sum of
  # comparisons is slow. What is padded ranks behind everything.
  num_parts = -(-len(x_TxX) // _TOGETHER)
  pad = [(0, num_parts * _TOGETHER - len(x_TxX))] + [(0, 0)] * (x_TxX.ndim - 1)
  bits_TxX = jnp.pad(bits_TxX, pad, constant_values=-1)

  def add(i, rank_NxX):
    part = jax.lax.dynamic_slice_in_dim(bits_TxX, i * _TOGETHER, _TOGETHER)
    for j in range(_TOGETHER):
      # Ties go to the lower index.
      is_before_N = (i * _TOGETHER + j < at_N).astype(bits_TxX.dtype)
      least_NxX = own_NxX - is_before_N.reshape(-1, *[1] * (x_TxX.ndim - 1))
      rank_NxX += part[j] > least_NxX
    return rank_NxX

  rank_NxX = jnp.zeros(own_NxX.shape, jnp.int32)
  rank_NxX = jax.lax.fori_loop(0, num_parts, add, rank_NxX)
  return jnp.where(rank_NxX < site.k, x_TxX[at_N], 0)


def numpy_gelu(x: np.ndarray) -> np.ndarray:
  """The exact GELU; NumPy has no erf."""
  erf = np.vectorize(math.erf, otypes=[np.float64])
  return (x * (0.5 + 0.5 * erf(x * math.sqrt(0.5)))).astype(x.dtype)


def numpy_gelu_tanh(x: np.ndarray) -> np.ndarray:
  """GPT-2's GELU, with a tanh (Hendrycks and Gimpel 2016, section 2)."""
  inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
  return x * (1 + np.tanh(inner)) / 2


NUMPY = Ops(
  np,
  lambda table, index: table[index],
  numpy_compete,
  numpy_top_k,
  lambda x_xT: np.einsum("...T,...T->...", x_xT, x_xT)[..., None],
  {
    "gelu": numpy_gelu,
    "gelu_tanh": numpy_gelu_tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
  },
)
JAX = Ops(
  jnp,
  # Tokens and positions were checked.
  lambda table, index: jnp.take(table, index, axis=0, mode="clip"),
  jax_compete,
  top_k.abs_top_k,
  lambda x_xT: jnp.sum(jnp.square(x_xT), -1, keepdims=True),
  {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": lambda x: jnp.maximum(x, np.float32(0)),
  },
)


@functools.partial(jax.jit, static_argnums=0)
def _run_jax(program, tokens, positions_B):
  return run(program, tokens, positions_B, JAX)


class _State(NamedTuple):
  """The residual stream, and which token and position each row of it is."""

  x_BxLxR: Any
  tokens_BxL: Any
  at_BxL: Any  # Of one row if all rows have the same, `[1, L]`.


def run(program: Program, tokens_BxL, positions_B, ops: Ops):
  """Returns a program's logits `[B, L, C]`, or `[B, 1, C]` of the positions."""
  p, xp = program, ops.xp
  # Not `arange`, so that an exported program takes any length.
  at_1xL = xp.cumsum(xp.ones_like(tokens_BxL[:1]), axis=1) - 1
  x_BxLxR = ops.rows(p.embed_VxR, tokens_BxL)
  if p.position_LxR is not None:
    x_BxLxR = x_BxLxR + ops.rows(p.position_LxR, at_1xL)
  state = _State(x_BxLxR, tokens_BxL, at_1xL)
  narrow = functools.partial(_at, positions_B=positions_B, ops=ops)
  mixing = [
    i for i, s in enumerate(p.sublayers) if isinstance(s.body, Attention)
  ]
  if positions_B is not None and not mixing:  # No token sees another.
    state = narrow(state)
  waiting_R = np.float32(0)  # Means that nothing has looked at yet.
  add = lambda state, x: state._replace(x_BxLxR=state.x_BxLxR + x)
  read = state  # By the next sublayer.
  for i, s in enumerate(p.sublayers):
    if i % 2 == 0 if p.config.parallel else s.body is not None:
      read = state = add(state, waiting_R)
      waiting_R = np.float32(0)
    if s.body is not None:
      is_last = positions_B is not None and [i] == mixing[-1:]
      delta_BxLxR = _delta(p.config, s, read, narrow if is_last else None, ops)
      if is_last:
        read, state = narrow(read), narrow(state)
      state = add(state, delta_BxLxR)
    waiting_R = waiting_R + s.constant_R
    if p.config.residual_activation == "relu" or s.k is not None:
      state = _leave(p.config, s, add(state, waiting_R), ops)
      waiting_R = np.float32(0)
  return p.logit_scale * _logits(p, add(state, waiting_R), ops)


def _at(state: _State, positions_B, ops) -> _State:
  """Returns the state at one position of each row."""
  rows_B = ops.xp.arange(len(state.tokens_BxL))
  positions_B = ops.xp.asarray(positions_B)
  pick = lambda x: x[rows_B, positions_B][:, None]
  x_BxLxR, tokens_BxL = pick(state.x_BxLxR), pick(state.tokens_BxL)
  return _State(x_BxLxR, tokens_BxL, positions_B[:, None])


def _delta(config, sublayer, state, narrow, ops):
  """Returns what a sublayer's open nodes add, `[B, L, R]`.

  `narrow`, if given, leaves one position of each row.
  """
  if isinstance(sublayer.body, Attention):
    delta_BxLxN = _attention(config, sublayer.body, state, narrow, ops)
  else:
    delta_BxLxN = _mlp(config, sublayer.body, state, ops)
  number_Nx1 = np.arange(delta_BxLxN.shape[-1])[:, None]
  place_NxR = (sublayer.delta_at == number_Nx1).astype(np.float32)
  return delta_BxLxN @ place_NxR


def _leave(config, sublayer, state, ops):
  """Returns the stream as a sublayer leaves it, its means added."""
  x_BxLxR = state.x_BxLxR
  if config.residual_activation == "relu":
    x_BxLxR = ops.xp.maximum(x_BxLxR, np.float32(0))
  if sublayer.k is not None:
    x_BxLxR = ops.top_k(x_BxLxR, sublayer.k)
  return state._replace(x_BxLxR=x_BxLxR)


def _mlp(config, body: Mlp, state, ops):
  """Returns the open channels that an MLP writes, `[B, L, N]`."""
  activation = ops.activations[config.activation]
  h_BxLxN = _input(config, body.input, state, ops)
  return _map(body.down, _map(body.up, h_BxLxN, ops, activation), ops)


def _pad(x_xN, ops):
  """Returns x with a column of zeros behind it."""
  zero_x1 = ops.xp.zeros((*x_xN.shape[:-1], 1), np.float32)
  return ops.xp.concatenate([x_xN, zero_x1], -1) if x_xN.shape[-1] else zero_x1


def _map(m: Map, x_BxLxS, ops, activation=lambda x: x, rest_BxLxT=0.0):
  """Returns the open channels of the site that a map leads to, `[B, L, N]`.

  `rest_BxLxT` is added to the bias. No product has an empty side: not every
  runtime of ONNX takes one.
  """
  xp, lead = ops.xp, x_BxLxS.shape[:2]
  if not m.site.is_open.any():
    return xp.zeros((*lead, 0), np.float32)
  if not len(m.weight_SxT):
    m = m._replace(weight_SxT=np.zeros((1, len(m.bias_T)), np.float32))
    x_BxLxS = xp.zeros((*lead, 1), np.float32)
  rest_BxLxT = m.bias_T[None, None] + rest_BxLxT
  if m.site.k is None:
    y_BxLxT = activation(x_BxLxS @ m.weight_SxT + rest_BxLxT)
    return y_BxLxT[..., np.flatnonzero(m.site.is_open)]
  # Channels come first, so that those of many tokens are compared at once.
  y_TxBxL = xp.tensordot(m.weight_SxT, x_BxLxS, ((0,), (2,)))
  y_TxBxL = activation(y_TxBxL + xp.moveaxis(rest_BxLxT, -1, 0))
  return xp.moveaxis(ops.compete(y_TxBxL, m.site), 0, -1)


def norm_eps(config: config_lib.ModelConfig) -> float:
  """Returns what a norm adds to the variance."""
  is_layer = config.norm == "layer"
  return config.norm_eps if is_layer else transformer.RMS_EPS


def _moments(config, norm: Norm, x_xR, tokens_x, ops):
  """Returns what a norm takes away and what it multiplies by, each `[..., 1]`.

  Channels that the program does not hold are summed up by token.
  """
  xp, d = ops.xp, config.d_model
  total_x1, square_x1 = 0.0, 0.0
  if norm.rest_Vx2 is not None:
    rest_x2 = ops.rows(norm.rest_Vx2, tokens_x)
    total_x1, square_x1 = rest_x2[..., :1], rest_x2[..., 1:]
  mean_x1 = 0.0
  if config.norm == "layer":
    mean_x1 = (xp.sum(x_xR, -1, keepdims=True) + total_x1) / d
    missing = d - x_xR.shape[-1]
    square_x1 = square_x1 + mean_x1 * (missing * mean_x1 - 2 * total_x1)
  centred_xR = x_xR - mean_x1 if config.norm == "layer" else x_xR
  squares_x1 = ops.squares(centred_xR)
  variance_x1 = (squares_x1 + square_x1) / d
  return mean_x1, 1 / xp.sqrt(variance_x1 + xp.float32(norm_eps(config)))


def _input(config, source: Input, state: _State, ops):
  """Returns the open channels that a sublayer reads, `[B, L, N]`."""
  xp, norm, tokens_BxL = ops.xp, source.norm, state.tokens_BxL
  mean, factor = _moments(config, norm, state.x_BxLxR, tokens_BxL, ops)
  # A factor on all channels alike does not change which are the largest.
  is_common = norm.bias_R is None and source.position_LxP is None
  h_BxLxT = state.x_BxLxR - mean if config.norm == "layer" else state.x_BxLxR
  h_BxLxT = h_BxLxT * (norm.scale_R if is_common else factor * norm.scale_R)
  if norm.bias_R is not None:
    h_BxLxT = h_BxLxT + norm.bias_R
  parts = [h_BxLxT]
  if source.position_LxP is not None:
    position_xLxP = ops.rows(source.position_LxP, state.at_BxL)
    shape = (*h_BxLxT.shape[:2], position_xLxP.shape[-1])
    parts.append(xp.broadcast_to(position_xLxP, shape))
  if source.rivals_VxK is not None:
    rivals_BxLxK = ops.rows(source.rivals_VxK, tokens_BxL)
    parts.append(rivals_BxLxK if is_common else factor * rivals_BxLxK)
  joined_BxLxT = parts[0] if len(parts) == 1 else xp.concatenate(parts, -1)
  if source.site.competes:
    own_NxBxL = ops.compete(xp.moveaxis(joined_BxLxT, -1, 0), source.site)
    own_BxLxN = xp.moveaxis(own_NxBxL, 0, -1)
  else:
    own_BxLxN = joined_BxLxT[..., np.flatnonzero(source.site.is_open)]
  return own_BxLxN * factor if is_common else own_BxLxN


def _attention(config, a: Attention, state, narrow, ops):
  """Returns the open channels that attention writes, `[B, L, N]`."""
  xp, after = ops.xp, narrow(state) if narrow else state
  h_BxMxN = _input(config, a.input, state, ops)
  h_BxLxN = h_BxMxN
  if narrow:
    h_BxLxN = narrow(state._replace(x_BxLxR=h_BxMxN)).x_BxLxR
  q_BxLxN = _pad(_map(a.query, h_BxLxN, ops), ops)
  k_BxMxN = _pad(_map(a.key, h_BxMxN, ops), ops)
  v_BxMxN = _map(a.value, h_BxMxN, ops)
  distance_BxLxM = _distance(state, after)
  is_seen_BxLxM = distance_BxLxM >= 0
  if a.window is not None:
    is_seen_BxLxM = is_seen_BxLxM & (distance_BxLxM < a.window)
  values, shares = [], []
  for head in a.heads:
    score_BxLxM = _score(config, head, q_BxLxN, k_BxMxN, state, after, ops)
    score_BxLxM = xp.where(is_seen_BxLxM, score_BxLxM, -xp.inf)
    weight_BxLxM = _pattern(head, score_BxLxM, ops)
    if len(head.v_at):
      values.append(weight_BxLxM @ v_BxMxN[..., head.v_at])
    if head.has_share:
      shares.append(xp.sum(weight_BxLxM, -1, keepdims=True))
  varying = [*values, *shares]
  sources_BxLxS = after.x_BxLxR[..., :0]
  if varying:  # Else the layer writes by position alone.
    sources_BxLxS = xp.concatenate(varying, -1)
  num_varying = len(a.write.weight_SxT) - len(a.uniform)
  write = a.write._replace(weight_SxT=a.write.weight_SxT[:num_varying])
  rest_BxLxT = _uniform(a, after.at_BxL, ops)
  return _map(write, sources_BxLxS, ops, rest_BxLxT=rest_BxLxT)


def _uniform(a: Attention, at_BxL, ops):
  """Returns what closed heads write: by position alone, `[..., L, T]`."""
  if not a.uniform:
    return 0.0
  log_odds_U = np.array([head.log_odds for head in a.uniform])
  odds_U = np.exp(np.minimum(log_odds_U, 80)).astype(np.float32)
  number_BxLx1 = (at_BxL[..., None] + 1).astype(np.float32)
  if a.window is not None:
    number_BxLx1 = ops.xp.minimum(number_BxLx1, np.float32(a.window))
  share_BxLxU = number_BxLx1 / (number_BxLx1 + odds_U)
  return share_BxLxU @ a.write.weight_SxT[-len(a.uniform) :]


def score_scale(config: config_lib.ModelConfig) -> float:
  """Returns what scores are multiplied by."""
  return config.d_head**-0.5 if config.scale_scores else 1.0


def _distance(state, after):
  """Returns how far each query is behind each key, `[B, L, M]`."""
  return after.at_BxL[..., None] - state.at_BxL[:, None, :]


def _score(config, head: Head, q_BxLxN, k_BxMxN, state, after, ops):
  """Returns a head's scores, those of keys not seen as well."""
  xp = ops.xp
  q_BxLxJ = q_BxLxN[..., head.q_at] + head.q_fixed_J
  k_BxMxJ = k_BxMxN[..., head.k_at] + head.k_fixed_J
  if head.turn is not None:
    q_BxLxJ = _turned(head.turn, q_BxLxJ, after.at_BxL, ops)
    k_BxMxJ = _turned(head.turn, k_BxMxJ, state.at_BxL, ops)
  score_BxLxM = q_BxLxJ @ xp.swapaxes(k_BxMxJ, 1, 2) + xp.float32(head.constant)
  if head.turned_L is not None:
    # No query sees a key behind it.
    distance_BxLxM = xp.maximum(_distance(state, after), 0)
    score_BxLxM = score_BxLxM + ops.rows(head.turned_L, distance_BxLxM)
  return score_BxLxM * xp.float32(score_scale(config))


def _turned(turn: Turn, x_BxLxJ, at_BxL, ops):
  """Returns a head's queries or keys, turned by where they are."""
  cos_BxLxJ = ops.rows(turn.cos_LxJ, at_BxL)
  sin_BxLxJ = ops.rows(turn.sin_LxJ, at_BxL)
  return x_BxLxJ * cos_BxLxJ + x_BxLxJ[..., turn.partner] * sin_BxLxJ


def _pattern(head: Head, score_BxLxM, ops):
  """Returns where a head looks, `[B, L, M]`; the sink takes the rest."""
  xp = ops.xp
  top_BxLx1 = xp.max(score_BxLxM, -1, keepdims=True)
  sink = xp.float32(-np.inf if head.sink is None else head.sink)
  top_BxLx1 = xp.maximum(top_BxLx1, sink)
  weight_BxLxM = xp.exp(score_BxLxM - top_BxLx1)
  total_BxLx1 = xp.sum(weight_BxLxM, -1, keepdims=True)
  return weight_BxLxM / (total_BxLx1 + xp.exp(sink - top_BxLx1))


def _logits(p: Program, state: _State, ops):
  """Returns logits `[B, L, C]`, not yet scaled."""
  out, tokens_BxL = p.output, state.tokens_BxL
  x_BxLxR = state.x_BxLxR
  if not out.is_open.all():
    # As a gate computes it, whatever a closed channel holds.
    x_BxLxR = ops.xp.where(out.is_open, x_BxLxR, out.fixed_R)
  mean, factor = _moments(p.config, out.norm, x_BxLxR, tokens_BxL, ops)
  logits_BxLxC = x_BxLxR @ out.weight_RxC
  if out.rest_VxC is not None:
    logits_BxLxC = logits_BxLxC + ops.rows(out.rest_VxC, tokens_BxL)
  logits_BxLxC = factor * (logits_BxLxC - mean * out.weight_sum_C)
  logits_BxLxC = logits_BxLxC + out.bias_C
  if out.bigram_VxC is not None:
    logits_BxLxC = logits_BxLxC + ops.rows(out.bigram_VxC, tokens_BxL)
  return logits_BxLxC
