"""The decoder: one forward pass with hooks (paper section 2; inference/gpt.py).

Attention: norm, AbsTopK, c_attn, AbsTopK on q, k and v, attention with sink,
c_proj, AbsTopK, add. MLP: norm, AbsTopK, c_fc, GELU, AbsTopK, c_proj, AbsTopK,
add. At every site, after its AbsTopK, the forward pass calls
`hook(site, layer, x)` and goes on with what comes back. Options of ModelConfig
change single steps of this.

Axes: B batch, L query position, M key position, D residual, H head, K head
width, F hidden neuron, P position embedding, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import heads, top_k
from sparse_jax.model import kernels as kernels_lib
from sparse_jax.utils import errors

Params = Any
Hook = Callable[[str, int | None, jax.Array], jax.Array]

_MOST_UNROLLED = 16  # Layers; more take too long to compile.
RMS_EPS = float(np.finfo(np.float32).eps)  # PyTorch's default, as released.
_INIT_SCALE = 0.02


def rms(x: jax.Array) -> jax.Array:
  """Returns what an RMS norm divides by, the last axis kept as size one."""
  return jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + RMS_EPS)


class Parameters(nn.Module):
  """Parameters of nested names, each of an (initialiser, shape)."""

  tree: Mapping[str, Any]

  @nn.compact
  def __call__(self):
    return {
      name: self.param(name, *entry)
      if isinstance(entry, tuple)
      else Parameters(entry, name=name)()
      for name, entry in self.tree.items()
    }


def _declare(c: config_lib.ModelConfig) -> dict[str, Any]:
  """Returns (initialiser, shape) of every parameter (inference/gpt.py)."""
  init, v = nn.initializers, c.vocab_size
  d, d_in, d_mlp = c.d_model, c.width("attn.act_in"), c.width("mlp.post_act")
  random = init.normal(_INIT_SCALE)
  to_residual = init.normal(_INIT_SCALE / math.sqrt(2 * c.n_layer))
  table = lambda rows, width: {"embedding": (random, (rows, width))}

  def norm(*shape):
    p = {"scale": (init.ones, shape)}
    if c.norm == "layer" and c.norm_bias:
      p["bias"] = init.zeros, shape
    return p

  def linear(d_in, d_out, kernel_init=random, bias=True):
    p = {"kernel": (kernel_init, (c.n_layer, d_in, d_out))}
    if c.bias and bias:
      p["bias"] = init.zeros, (c.n_layer, d_out)
    return p

  layers = {
    "ln_1": norm(c.n_layer, d),
    "attn": {
      "c_attn": linear(d_in, 3 * d, bias=c.attention_bias == "all"),
      "c_proj": linear(d, d, to_residual, bias=c.attention_bias != "none"),
    },
    "ln_2": norm(c.n_layer, d),
    "mlp": {
      "c_fc": linear(d_in, d_mlp),
      "c_proj": linear(d_mlp, d, to_residual),
    },
  }
  if c.sink:
    layers["attn"]["sink"] = init.zeros, (c.n_layer, c.n_head)
  tree = {
    "wte": table(v, d),
    "layers": layers,
    "ln_f": norm(d),
    "logit_bias": (init.zeros, (v,)),
  }
  if c.positions == "learned":
    tree["wpe"] = table(c.context_length, d)
  if c.concatenates_positions:
    for name in ("ln_p1", "ln_p2"):
      layers[name] = norm(c.n_layer, c.d_position)
    tree["wpe"] = table(c.context_length, c.d_position)
  if c.positions == "sinusoidal":
    shape = c.context_length, c.d_position
    tree["wpe"] = {"embedding": (lambda _, shape: sinusoids(*shape), shape)}
  if not c.tied:
    tree["lm_head"] = table(v, d)
  if c.bigram != "none":
    tree["bigram_table"] = init.uniform(_INIT_SCALE), (v, v)
  return tree


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A decoder's pure functions of its parameters.

  `dtype` is that of activations and matrix products; norms, attention weights
  and logits are float32. With `remat` a gradient computes each layer's
  activations again instead of keeping them. The config's derived fields must be
  resolved. Models of one configuration are equal and share programs.
  """

  config: config_lib.ModelConfig
  sparsity: config_lib.SparsityConfig
  dtype: jnp.dtype = jnp.float32
  kernels: kernels_lib.Kernels = kernels_lib.XLA
  remat: bool = False

  def __post_init__(self):
    c = self.config
    if not c.vocab_size or not c.d_mlp:
      raise errors.InputError(
        f"model.vocab_size={c.vocab_size} and model.d_mlp={c.d_mlp} must be"
        " resolved; see sparse_jax.config.resolve"
      )
    config_lib.check_activations(c, self.sparsity)
    object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

  def __repr__(self) -> str:
    c, s = self.config, self.sparsity
    count = num_parameters(jax.eval_shape(self.init, jax.random.key(0)))
    return (
      f"Model({c.n_layer} layers, d_model {c.d_model}, {count:,} parameters,"
      f" density {s.density:g}, AbsTopK {s.activation_fraction:g},"
      f" {self.dtype.name})"
    )

  def init(self, rng: jax.Array) -> Params:
    """Returns fresh parameters, float32."""
    return Parameters(_declare(self.config)).init(rng)["params"]

  def apply(
    self, params: Params, tokens: jax.Array, hook: Hook | None = None
  ) -> jax.Array:
    """Returns logits, float32 `[B, L, V]`, in nats up to a constant.

    Tokens are int `[B, L]`, an array or nested lists; B may be 0. A hook gets x
    `[B, L, width]` at every site after its AbsTopK and returns an array of that
    shape; layer is a Python int, None for `final_resid`. Raises InputError for
    other tokens and for a hook that returns anything else.
    """
    tokens = check_tokens(tokens, self.config.vocab_size)
    return self.unembed(params, self.residual(params, tokens, hook), tokens)

  def residual(
    self,
    params: Params,
    tokens: jax.Array,
    hook: Hook | None = None,
    positions_B: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the residual stream before the last norm, `[B, L, D]`.

    With `positions_B`, the only position of each row that is wanted, it is
    `[B, 1, D]`. The last layer then computes keys and values everywhere and all
    else there alone: a hook sees `[B, 1, width]` from that layer's queries on.
    """
    tokens = check_tokens(tokens, self.config.vocab_size)
    config, length = self.config, tokens.shape[1]
    if config.positions != "none" and length > config.context_length:
      raise errors.InputError(
        f"tokens have length {length}; a model with positions takes at most"
        f" model.context_length={config.context_length}"
      )
    x_BxLxD = params["wte"]["embedding"][tokens].astype(self.dtype)
    if config.positions == "learned":
      x_BxLxD += params["wpe"]["embedding"][:length].astype(self.dtype)
    position_LxP = None
    if config.concatenates_positions:
      position_LxP = params["wpe"]["embedding"][:length]
    layers = jax.tree.map(lambda x: x.astype(self.dtype), params["layers"])
    block = functools.partial(self._block, position_LxP=position_LxP)
    windows = heads.windows(config)
    if hook is None and positions_B is None:
      step = lambda x, p: (block(p[0], x, _no_hook, None, window=p[1]), None)
      # Rolled, CPU is a third slower; unrolled, compile time grows with depth.
      # A loop keeps XLA from seeing that remat computes the same thing twice.
      is_rolled = self.remat or config.n_layer > _MOST_UNROLLED
      is_rolled |= jax.default_backend() != "cpu"
      if self.remat:
        step = jax.checkpoint(step, prevent_cse=False)
      unroll = 1 if is_rolled else config.n_layer
      return jax.lax.scan(step, x_BxLxD, (layers, windows), unroll=unroll)[0]
    hook = _checked(hook) if hook else _no_hook
    for layer in range(config.n_layer):
      p = jax.tree.map(lambda leaf, i=layer: leaf[i], layers)
      wanted_B = positions_B if layer == config.n_layer - 1 else None
      window = None if windows is None else windows[layer]
      at = {"wanted_B": wanted_B, "window": window}
      own = functools.partial(block, hook=hook, layer=layer, **at)
      x_BxLxD = (jax.checkpoint(own) if self.remat else own)(p, x_BxLxD)
    return hook("final_resid", None, x_BxLxD)

  def unembed(
    self,
    params: Params,
    x_xD: jax.Array,
    tokens: jax.Array,
    candidates: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the float32 logits that residuals before the last norm give.

    Tokens `[...]` are the current ones, the bigram table's rows. The logits are
    those of all tokens, `[..., V]`, or of the candidates `[..., C]` alone.
    """
    h_xD = self._norm(params["ln_f"], x_xD)
    w_VxD = params["wte" if self.config.tied else "lm_head"]["embedding"]
    bigram_VxV = params.get("bigram_table")
    if self.config.bigram == "fixed":  # A gradient of its size costs time.
      bigram_VxV = jax.lax.stop_gradient(bigram_VxV)
    if candidates is None:
      logits = (h_xD @ w_VxD.astype(h_xD.dtype).T).astype(jnp.float32)
      logits += params["logit_bias"]
      rows = lambda: bigram_rows(bigram_VxV, tokens)
    else:
      logits = jnp.einsum("...D,...CD->...C", h_xD, w_VxD[candidates])
      logits += params["logit_bias"][candidates]
      rows = lambda: bigram_VxV[tokens[..., None], candidates]
    return logits if bigram_VxV is None else logits + rows()

  def _block(
    self, p, x_BxLxD, hook, layer, *, position_LxP, wanted_B=None, window=None
  ):
    x_BxLxD = hook("resid_in", layer, x_BxLxD)
    h_BxLxI = self._sublayer_input(p, "1", x_BxLxD, position_LxP)
    at = wanted_B, window
    delta_BxLxD = self._attention(p["attn"], h_BxLxI, hook, layer, *at)
    if wanted_B is not None:
      x_BxLxD = _only(x_BxLxD, wanted_B)
      if position_LxP is not None:
        position_LxP = position_LxP[wanted_B][:, None]
    before_BxLxD = x_BxLxD
    x_BxLxD = before_BxLxD + delta_BxLxD
    x_BxLxD = hook("resid_mid", layer, self._leave("resid_mid", x_BxLxD))
    read_BxLxD = before_BxLxD if self.config.parallel else x_BxLxD
    h_BxLxI = self._sublayer_input(p, "2", read_BxLxD, position_LxP)
    x_BxLxD += self._mlp(p["mlp"], h_BxLxI, hook, layer)
    return self._leave("resid_in", x_BxLxD)

  def _sublayer_input(self, p, number, x_BxLxD, position_LxP):
    """Returns the normed stream, normed positions behind it if there are."""
    h_BxLxD = self._norm(p["ln_" + number], x_BxLxD)
    if position_LxP is None:
      return h_BxLxD
    position_LxP = self._norm(p["ln_p" + number], position_LxP)
    shape = (*h_BxLxD.shape[:2], position_LxP.shape[-1])
    return jnp.concatenate([h_BxLxD, jnp.broadcast_to(position_LxP, shape)], -1)

  def _attention(self, p, h_BxLxI, hook, layer, wanted_B, window):
    c = self.config
    h_BxLxI = self._site("attn.act_in", h_BxLxI, hook, layer)
    if wanted_B is None:
      qkv = jnp.split(_linear(p["c_attn"], h_BxLxI), 3, -1)
    else:
      query, key_value = _split_outputs(p["c_attn"], c.d_model)
      q_Bx1xD = _linear(query, _only(h_BxLxI, wanted_B))
      qkv = q_Bx1xD, *jnp.split(_linear(key_value, h_BxLxI), 2, -1)
    q, k, v = (
      self._site(f"attn.{name}", x_BxLxD, hook, layer)
      for name, x_BxLxD in zip("qkv", qkv, strict=True)
    )
    query_at = None if wanted_B is None else wanted_B[:, None]
    y_BxLxHxK = self.kernels.attend(
      *heads.queries_and_keys(c, q, k, query_at),
      heads.split(c, v),
      p.get("sink"),
      query_at,
      window,
    )
    y_BxLxD = y_BxLxHxK.reshape(q.shape).astype(self.dtype)
    y_BxLxD = self._site("attn.y", y_BxLxD, hook, layer)
    out_BxLxD = _linear(p["c_proj"], y_BxLxD)
    return self._site("attn.resid_delta", out_BxLxD, hook, layer)

  def _mlp(self, p, h_BxLxI, hook, layer):
    h_BxLxI = self._site("mlp.act_in", h_BxLxI, hook, layer)
    h_BxLxF = _linear(p["c_fc"], h_BxLxI)
    if self.config.activation == "relu":
      h_BxLxF = jax.nn.relu(h_BxLxF)
    else:
      is_tanh = self.config.activation == "gelu_tanh"
      h_BxLxF = jax.nn.gelu(h_BxLxF, approximate=is_tanh)
    h_BxLxF = self._site("mlp.post_act", h_BxLxF, hook, layer)
    out_BxLxD = _linear(p["c_proj"], h_BxLxF)
    return self._site("mlp.resid_delta", out_BxLxD, hook, layer)

  def _site(self, name, x, hook, layer):
    return hook(name, layer, self._top_k(name, x))

  def _top_k(self, name, x):
    k = self.sparsity.num_active(name, x.shape[-1])
    return top_k.abs_top_k(x, k, self.kernels.top_k_mask)

  def _norm(self, p, x_xD):
    x = x_xD.astype(jnp.float32)
    if self.config.norm == "rms":
      x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + RMS_EPS)
    else:
      x -= jnp.mean(x, -1, keepdims=True)
      variance = jnp.mean(jnp.square(x), -1, keepdims=True)
      x *= jax.lax.rsqrt(variance + self.config.norm_eps)
    x = x * p["scale"]
    return (x + p["bias"] if "bias" in p else x).astype(self.dtype)

  def _leave(self, name, x_BxLxD):
    """Returns the residual stream as a sublayer leaves it."""
    if self.config.residual_activation == "relu":
      x_BxLxD = jax.nn.relu(x_BxLxD)
    return self._top_k(name, x_BxLxD)


def check_tokens(tokens: Any, vocab_size: int) -> jax.Array:
  """Returns tokens as an int array `[B, L]`, L at least 1.

  A lookup clamps ids outside the vocabulary, so they are refused here; traced
  ids are not known yet and pass.
  """
  is_traced = isinstance(tokens, jax.core.Tracer)
  if not is_traced:
    try:
      tokens = np.asarray(tokens)
    except ValueError as e:
      raise errors.InputError(
        "tokens are rows of different lengths; need int [batch, length]"
      ) from e
  if tokens.ndim != 2 or not tokens.shape[1]:
    raise errors.InputError(
      f"tokens have shape {tokens.shape}; need [batch, length] with at least"
      " one position"
    )
  if tokens.size and not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise errors.InputError(f"tokens are {tokens.dtype}; need integers")
  if is_traced:
    return tokens
  outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
  if outside.size:
    raise errors.InputError(
      f"token id {outside[0]} is outside the vocabulary of {vocab_size}; need"
      f" 0 to {vocab_size - 1}"
    )
  return jnp.asarray(tokens, jnp.int32)


def _checked(hook: Hook) -> Hook:
  """Returns a hook whose results must have x's shape and kind of number."""

  def checked(site, layer, x):
    y = hook(site, layer, x)
    shape, dtype = getattr(y, "shape", None), getattr(y, "dtype", None)
    if shape != x.shape or not jnp.issubdtype(dtype, jnp.floating):
      got = type(y).__name__ if dtype is None else f"{dtype} {list(shape)}"
      raise errors.InputError(
        f"hook at {sites.site_id(site, layer)} returned {got}; need"
        f" {x.dtype} {list(x.shape)}"
      )
    return y

  return checked


def _no_hook(site, layer, x):
  del site, layer
  return x


def _linear(p, x_BxLxI):
  """Returns `x @ kernel + bias`, on two axes: backward is 4 times faster."""
  kernel_IxO = p["kernel"]
  batch, length, width = x_BxLxI.shape
  y_NxO = x_BxLxI.reshape(batch * length, width) @ kernel_IxO
  if "bias" in p:
    y_NxO += p["bias"]
  return y_NxO.reshape(batch, length, kernel_IxO.shape[-1])


def _only(x_BxLxD, wanted_B):
  """Returns one position of each row, `[B, 1, D]`."""
  return jnp.take_along_axis(x_BxLxD, wanted_B[:, None, None], 1)


def _split_outputs(p, width):
  """Returns a linear map's first `width` outputs and the rest, as two maps."""
  parts = slice(width), slice(width, None)
  return [{name: x[..., part] for name, x in p.items()} for part in parts]


@jax.custom_vjp
def bigram_rows(table_VxV: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns the bigram table's rows of the current tokens, `[..., V]`.

  The last row (end of text) gets no gradient: it is padding in `train.py`.
  """
  return table_VxV[tokens]


def _bigram_forward(table_VxV, tokens):
  return table_VxV[tokens], (table_VxV.shape, tokens)


def _bigram_backward(residuals, grad_xV):
  shape, tokens = residuals
  grad_VxV = jnp.zeros(shape, grad_xV.dtype).at[tokens].add(grad_xV)
  return grad_VxV.at[-1].set(0), None


bigram_rows.defvjp(_bigram_forward, _bigram_backward)


def sinusoids(length: int, width: int) -> jax.Array:
  """Returns fixed positions `[length, width]`, as inference/gpt.py does.

  Sines, then cosines, of periods spaced evenly in the logarithm from 4 to
  `length`; the last column of an odd width is zero.
  """
  period_P = np.geomspace(4, max(4, length), max(1, width // 2))
  angle_LxP = 2 * np.pi * np.arange(length)[:, None] / period_P
  table = np.zeros((length, width), np.float32)
  waves = np.concatenate([np.sin(angle_LxP), np.cos(angle_LxP)], -1)
  table[:, : waves.shape[1]] = waves[:, :width]
  return jnp.asarray(table)


def num_parameters(params: Params) -> int:
  """Returns the number of scalar parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
