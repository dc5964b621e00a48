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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.model import top_k, transformer
from sparse_jax.utils import errors


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


class Head(NamedTuple):
  """A head of which a query, key or value is open."""

  index: int
  channels: np.ndarray  # `[J]`: of its queries and keys at least one is open.
  q_at: np.ndarray  # `[J]`, among the open queries; their number if closed.
  k_at: np.ndarray
  q_fixed_J: np.ndarray  # A closed query's mean, 0 if it is open.
  k_fixed_J: np.ndarray
  constant: float  # The score of its other channels.
  sink: float | None
  v_at: np.ndarray  # Its open values among those of the layer.
  has_share: bool  # Whether closed values pass, times what the sink leaves.


class Uniform(NamedTuple):
  """A closed head with a sink: it looks at all n tokens alike.

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
  """What NumPy and JAX spell differently."""

  xp: Any
  rows: Callable[[np.ndarray, Any], Any]  # Rows of a table, by index.
  top_k: Callable[[Any, int], Any]
  gelu: Callable[[Any], Any]


def numpy_top_k(x_xT: np.ndarray, k: int) -> np.ndarray:
  """AbsTopK of the last axis by a partition; ties go to the lower index."""
  size_xT = np.abs(x_xT)
  kth_x1 = np.partition(size_xT, -k)[..., -k, None]
  above_xT, tied_xT = size_xT > kth_x1, size_xT == kth_x1
  left_x1 = k - above_xT.sum(-1, keepdims=True)
  kept_xT = above_xT | (tied_xT & (np.cumsum(tied_xT, -1) <= left_x1))
  return np.where(kept_xT, x_xT, np.zeros_like(x_xT))


def numpy_gelu(x: np.ndarray) -> np.ndarray:
  """The exact GELU; NumPy has no erf."""
  erf = np.vectorize(math.erf, otypes=[np.float64])
  return (x * (0.5 + 0.5 * erf(x * math.sqrt(0.5)))).astype(x.dtype)


NUMPY = Ops(np, lambda table, index: table[index], numpy_top_k, numpy_gelu)
JAX = Ops(
  jnp,
  lambda table, index: jnp.take(table, index, axis=0),
  top_k.abs_top_k,
  functools.partial(jax.nn.gelu, approximate=False),
)


@functools.partial(jax.jit, static_argnums=0)
def _run_jax(program, tokens, positions_B):
  return run(program, tokens, positions_B, JAX)


class _State(NamedTuple):
  """The residual stream, and which token and position each row of it is."""

  x_BxLxR: Any
  tokens_BxL: Any
  at_BxL: Any


def run(program: Program, tokens_BxL, positions_B, ops: Ops):
  """Returns a program's logits `[B, L, C]`, or `[B, 1, C]` of the positions."""
  p, xp = program, ops.xp
  batch, length = tokens_BxL.shape
  at_BxL = xp.broadcast_to(xp.arange(length), (batch, length))
  x_BxLxR = ops.rows(p.embed_VxR, tokens_BxL)
  if p.position_LxR is not None:
    x_BxLxR = x_BxLxR + p.position_LxR[:length]
  state = _State(x_BxLxR, tokens_BxL, at_BxL)
  for i, sublayer in enumerate(p.sublayers):
    is_last_attention = i == len(p.sublayers) - 2
    wanted = None
    if positions_B is not None and is_last_attention:
      rows_B = xp.arange(batch)
      wanted = lambda x, r=rows_B: x[r, xp.asarray(positions_B)][:, None]
    state = _sublayer(p.config, sublayer, state, wanted, ops)
  return p.logit_scale * _logits(p, state, ops)


def _sublayer(config, sublayer, state, wanted, ops):
  """Returns the state behind a sublayer, at the wanted position if given."""
  body, xp = sublayer.body, ops.xp
  after = state if wanted is None else _State(*map(wanted, state))
  if isinstance(body, Attention):
    delta = _attention(config, body, state, after, wanted, ops)
  elif body is not None:
    h = _input(config, body.input, state, ops)
    activation = ops.gelu
    if config.activation == "relu":
      activation = lambda x: xp.maximum(x, 0)
    h = _map(body.up, h, ops, activation)
    delta = _map(body.down, h, ops)
  x_BxLxR = after.x_BxLxR + sublayer.constant_R
  if body is not None:
    x_BxLxR = x_BxLxR + _pad(delta, ops)[..., sublayer.delta_at]
  if config.residual_activation == "relu":
    x_BxLxR = xp.maximum(x_BxLxR, 0)
  if sublayer.k is not None:
    x_BxLxR = ops.top_k(x_BxLxR, sublayer.k)
  return after._replace(x_BxLxR=x_BxLxR)


def _pad(x_xN, ops):
  """Returns x with a column of zeros behind it."""
  xp = ops.xp
  zero_x1 = xp.zeros((*x_xN.shape[:-1], 1), x_xN.dtype)
  return xp.concatenate([x_xN, zero_x1], -1)


def _map(m: Map, x_xS, ops, activation=lambda x: x):
  """Returns the open channels of the site that a map leads to, `[..., N]`."""
  y_xT = activation(x_xS @ m.weight_SxT + m.bias_T)
  return _site(m.site, y_xT, ops)


def _site(site: Site, x_xT, ops):
  if site.k is not None:
    x_xT = ops.top_k(x_xT, site.k)
  return x_xT[..., np.flatnonzero(site.is_open)]


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
  squares_x1 = xp.sum(xp.square(x_xR - mean_x1), -1, keepdims=True)
  variance_x1 = (squares_x1 + square_x1) / d
  return mean_x1, 1 / xp.sqrt(variance_x1 + xp.float32(norm_eps(config)))


def _input(config, source: Input, state: _State, ops):
  """Returns the open channels that a sublayer reads, `[B, L, N]`."""
  norm, tokens_BxL = source.norm, state.tokens_BxL
  mean, factor = _moments(config, norm, state.x_BxLxR, tokens_BxL, ops)
  h_BxLxT = (state.x_BxLxR - mean) * factor * norm.scale_R
  if norm.bias_R is not None:
    h_BxLxT = h_BxLxT + norm.bias_R
  parts = [h_BxLxT]
  if source.position_LxP is not None:
    parts.append(ops.rows(source.position_LxP, state.at_BxL))
  if source.rivals_VxK is not None:
    parts.append(factor * ops.rows(source.rivals_VxK, tokens_BxL))
  return _site(source.site, ops.xp.concatenate(parts, -1), ops)


def _attention(config, a: Attention, state, after, wanted, ops):
  """Returns the open channels that attention writes, `[B, L, N]`."""
  xp = ops.xp
  h_BxMxN = _input(config, a.input, state, ops)
  h_BxLxN = h_BxMxN if wanted is None else wanted(h_BxMxN)
  q_BxLxN = _pad(_map(a.query, h_BxLxN, ops), ops)
  k_BxMxN = _pad(_map(a.key, h_BxMxN, ops), ops)
  v_BxMxN = _map(a.value, h_BxMxN, ops)
  values, shares = [], []
  for head in a.heads:
    weight_BxLxM = _pattern(config, head, q_BxLxN, k_BxMxN, after.at_BxL, ops)
    values.append(weight_BxLxM @ v_BxMxN[..., head.v_at])
    if head.has_share:
      shares.append(xp.sum(weight_BxLxM, -1, keepdims=True))
  number_BxLx1 = (after.at_BxL[..., None] + 1).astype(np.float32)
  for head in a.uniform:
    odds = xp.float32(np.exp(np.minimum(head.log_odds, 80)))
    shares.append(number_BxLx1 / (number_BxLx1 + odds))
  # A layer without heads or sinks writes constants.
  none_BxLx0 = xp.zeros((*after.at_BxL.shape, 0), v_BxMxN.dtype)
  sources_BxLxS = xp.concatenate([*values, *shares, none_BxLx0], -1)
  return _map(a.write, sources_BxLxS, ops)


def _pattern(config, head: Head, q_BxLxN, k_BxMxN, at_BxL, ops):
  """Returns where a head looks, `[B, L, M]`; the sink takes the rest."""
  xp = ops.xp
  q_BxLxJ = q_BxLxN[..., head.q_at] + head.q_fixed_J
  k_BxMxJ = k_BxMxN[..., head.k_at] + head.k_fixed_J
  score_BxLxM = q_BxLxJ @ xp.swapaxes(k_BxMxJ, 1, 2) + xp.float32(head.constant)
  score_BxLxM = score_BxLxM * xp.float32(config.d_head**-0.5)
  visible_BxLxM = xp.arange(k_BxMxN.shape[1]) <= at_BxL[..., None]
  score_BxLxM = xp.where(visible_BxLxM, score_BxLxM, -xp.inf)
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
