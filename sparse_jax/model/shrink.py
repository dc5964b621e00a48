"""Cuts a model down to the program that a circuit is.

What stays is what an open node's value depends on; what closed nodes add at
their means goes into biases. Three things outside a circuit stay because the
values inside depend on them:

- *Rivals.* AbsTopK keeps the k largest channels of a site, open or closed, and
  ablation comes after it. A closed channel that some open one feeds is computed
  with the site; of those that are constant the k largest can matter.
- *The stream.* Norms divide by the size of the whole residual stream, and
  AbsTopK behind them compares all its channels. Where nothing but the token
  decides the channels that no open node reads or writes, their sums and, for
  AbsTopK, their k largest are tables by token. Elsewhere (learned positions,
  AbsTopK on the stream, all logits, AbsTopK behind a LayerNorm, or tables that
  would be larger) every channel is held.
- *Shares.* A head's closed values are constant, but a sink takes a share of
  them that depends on the scores: a closed head still writes
  `n / (n + odds)` of its constant at the n-th token.

Rotary positions turn queries and keys, pairs of channels of a head, behind the
nodes. Where one of a pair's four values is open, the others are held at their
means and turned with it; what a wholly closed pair adds to a score depends on
the distance between query and key alone: a table.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import heads as heads_lib
from sparse_jax.model import program as program_lib
from sparse_jax.model import transformer
from sparse_jax.model.program import (
  Attention,
  Head,
  Input,
  Map,
  Mlp,
  Norm,
  Output,
  Program,
  Site,
  Sublayer,
  Turn,
  Uniform,
)
from sparse_jax.utils import errors

# Of each sublayer: its sites' prefix, its norms, and the site it leaves.
_SUBLAYERS = (
  ("attn", "ln_1", "ln_p1", "resid_mid"),
  ("mlp", "ln_2", "ln_p2", "resid_in"),
)


def shrink(
  model: transformer.Model,
  params: transformer.Params,
  node_mask: Mapping[str, np.ndarray],
  means: Mapping[str, np.ndarray],
  logit_scale: float = 1.0,
  answers: Sequence[int] | None = None,
  by_token: bool = True,
) -> Program:
  """Returns the program of the open nodes; the others are at their means.

  Args:
    model: the model.
    params: the model's.
    node_mask: per site `[layers, width]` bool; a site without is wholly open.
    means: per site of the mask `[layers, width]`.
    logit_scale: a factor on all logits.
    answers: the tokens whose logits are wanted; None is all. Fewer logits need
      less of the residual stream.
    by_token: whether tables by token may stand for part of the stream.

  Raises:
    InputError: if an answer is not a token, or there are none.
  """
  if answers is not None:
    answers = np.asarray(answers)
    is_token = (answers >= 0) & (answers < model.config.vocab_size)
    if answers.ndim != 1 or not answers.size or not is_token.all():
      accepted = f"tokens from 0 to {model.config.vocab_size - 1}"
      raise errors.bad_value("answers", answers.tolist(), accepted)
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  cut = _Cut(model, params, node_mask, means, answers, by_token)
  return cut.program(logit_scale)


class _Nodes(NamedTuple):
  """One site's open channels and means in one layer, each `[width]`."""

  is_open: np.ndarray
  mean: np.ndarray


class _Cut:
  """A model, a mask and means, and what is made of them."""

  def __init__(self, model, params, node_mask, means, answers, by_token):
    self.model, self.config, self.params = model, model.config, params
    self.node_mask, self.means, self.answers = node_mask, means, answers
    c, d = self.config, self.config.d_model
    self.angle_LxR = np.zeros((c.context_length, 0))
    if c.positions == "rotary":
      turns = c.context_length, c.rotary_width, c.rotary_base
      self.angle_LxR = heads_lib.angles(*turns)
    self.wires = np.arange(d)
    if by_token and not self._holds_all():
      self.wires = np.flatnonzero(self._touched())
    self.rest = np.setdiff1d(np.arange(d), self.wires)
    table_VxD = edges_lib.parameter(params, sites.EMBED)
    # What the other channels hold, by token, as far as sublayers are made, and
    # what the next of them reads.
    self.rest_VxO = self.read_VxO = table_VxD[:, self.rest]

  def program(self, logit_scale: float) -> Program:
    """Returns the whole program."""
    table_VxD = edges_lib.parameter(self.params, sites.EMBED)
    position_LxR = None
    if self.config.positions == "learned":
      position_LxD = edges_lib.parameter(self.params, sites.POSITION)
      position_LxR = position_LxD[:, self.wires]
    return Program(
      config=self.config,
      answers=self.answers,
      logit_scale=float(logit_scale),
      wires=self.wires,
      embed_VxR=table_VxD[:, self.wires],
      position_LxR=position_LxR,
      sublayers=tuple(
        self._sublayer(layer, *names)
        for layer in range(self.config.n_layer)
        for names in _SUBLAYERS
      ),
      output=self._output(),
    )

  def _nodes(self, site: str, layer: int) -> _Nodes:
    width = self.config.width(site)
    if site not in self.node_mask:
      return _Nodes(np.ones(width, bool), np.zeros(width, np.float32))
    mean = np.asarray(self.means[site], np.float32)[layer]
    return _Nodes(np.asarray(self.node_mask[site], bool)[layer], mean)

  def _k(self, site: str) -> int | None:
    """Returns what AbsTopK keeps at a site, None where it keeps all."""
    width = self.config.width(site)
    k = self.model.sparsity.num_active(site, width)
    return k if k < width else None

  def _bodies(self) -> list[tuple[str, int]]:
    """Returns (prefix, layer) of the sublayers that write more than means."""
    return [
      (prefix, layer)
      for layer in range(self.config.n_layer)
      for prefix, *_ in _SUBLAYERS
      if self._nodes(f"{prefix}.resid_delta", layer).is_open.any()
    ]

  def _touched(self) -> np.ndarray:
    """Returns which residual channels an open node reads or writes, `[D]`."""
    d = self.config.d_model
    touched = np.zeros(d, bool)
    for prefix, layer in self._bodies():
      touched |= self._nodes(f"{prefix}.act_in", layer).is_open[:d]
      touched |= self._nodes(f"{prefix}.resid_delta", layer).is_open
    return touched

  def _holds_all(self) -> bool:
    """Returns whether every residual channel has to be held, or may as well."""
    c, bodies = self.config, self._bodies()
    competing = [self._k(f"{prefix}.act_in") for prefix, _ in bodies]
    competing = [k for k in competing if k is not None]
    streams = [self._k(leaves) for *_, leaves in _SUBLAYERS]
    if (
      self.answers is None
      or c.positions == "learned"
      or any(k is not None for k in streams)
      or (competing and c.norm == "layer")
    ):
      return True
    num_rest = int(np.sum(~self._touched()))
    rivals = sum(min(k, num_rest) for k in competing)
    return 2 * (len(bodies) + 1) + rivals + self.answers.size >= num_rest

  def _sublayer(self, layer, prefix, norm, position_norm, leaves) -> Sublayer:
    writes = self._nodes(f"{prefix}.resid_delta", layer)
    body = None
    if prefix == "attn" or not self.config.parallel:
      self.read_VxO = self.rest_VxO
    if writes.is_open.any():
      source = self._input(layer, prefix, norm, position_norm)
      make = self._attention if prefix == "attn" else self._mlp
      body = make(layer, source)
    constant_D = np.where(writes.is_open, 0, writes.mean)
    number_D = np.cumsum(writes.is_open) - 1
    delta_at_D = np.where(writes.is_open, number_D, writes.is_open.sum())
    self.rest_VxO = self.rest_VxO + constant_D[self.rest]
    if self.config.residual_activation == "relu":
      self.rest_VxO = np.maximum(self.rest_VxO, 0)
    return Sublayer(
      body, constant_D[self.wires], delta_at_D[self.wires], self._k(leaves)
    )

  def _norm(self, p, rest_VxO) -> Norm:
    """Returns a norm of parameters `[D]`, given what the rest holds."""
    rest_Vx2 = None
    if self.rest.size:
      x_VxO = rest_VxO.astype(np.float64)
      sums = x_VxO.sum(-1), np.square(x_VxO).sum(-1)
      rest_Vx2 = np.stack(sums, -1).astype(np.float32)
    bias_R = p["bias"][self.wires] if "bias" in p else None
    return Norm(p["scale"][self.wires], bias_R, rest_Vx2)

  def _input(self, layer, prefix, norm, position_norm) -> Input:
    c, site = self.config, f"{prefix}.act_in"
    of_layer = lambda name: {
      key: x[layer] for key, x in self.params["layers"][name].items()
    }
    p, k = of_layer(norm), self._k(site)
    channels, position_LxP, rivals_VxK = [self.wires], None, None
    if c.concatenates_positions:
      position_LxP = self._normed_positions(of_layer(position_norm))
      channels.append(c.d_model + np.arange(c.d_position))
    is_open = self._nodes(site, layer).is_open[np.concatenate(channels)]
    if self.rest.size and k is not None:
      sizes_VxO = np.abs(self.read_VxO * p["scale"][self.rest])
      rivals_VxK = -np.sort(-sizes_VxO, -1)[:, :k]
      # They stand for other channels at every token: no number of their own.
      channels.append(np.full(rivals_VxK.shape[1], c.width(site)))
      is_open = np.concatenate([is_open, channels[-1] < 0])
    site = Site(np.concatenate(channels), is_open, k)
    norm = self._norm(p, self.read_VxO)
    return Input(norm, position_LxP, rivals_VxK, site)

  def _normed_positions(self, p) -> np.ndarray:
    """Returns what joins the input of a sublayer, `[L, P]`."""
    x_LxP = edges_lib.parameter(self.params, sites.POSITION)
    x_LxP = x_LxP.astype(np.float64)
    if self.config.norm == "layer":
      x_LxP -= x_LxP.mean(-1, keepdims=True)
    square_Lx1 = np.square(x_LxP).mean(-1, keepdims=True)
    eps = program_lib.norm_eps(self.config)
    x_LxP = x_LxP / np.sqrt(square_Lx1 + eps) * p["scale"]
    return (x_LxP + p.get("bias", 0)).astype(np.float32)

  def _map(
    self, site, layer, weight_SxT, bias_T, wanted=True, activation=lambda x: x
  ) -> Map:
    """Returns the map to a site's open channels that are wanted, and rivals.

    The weights are those of its variable sources, to every channel; `wanted`
    says of each channel whether something reads it.
    """
    k = self._k(site)
    needed = self._nodes(site, layer).is_open & wanted
    computed = needed
    if k is not None and needed.any():
      varies = np.any(weight_SxT != 0, 0)
      size_T = np.abs(activation(bias_T.astype(np.float32)))
      constant = np.flatnonzero(~varies & ~needed & (size_T > 0))
      # The lower index wins a tie, as in AbsTopK.
      largest = constant[np.argsort(-size_T[constant], kind="stable")[:k]]
      computed = needed | varies
      computed[largest] = True
    channels = np.flatnonzero(computed)
    if k is not None and len(channels) <= k:
      channels, k = np.flatnonzero(needed), None
    return Map(
      weight_SxT[:, channels].astype(np.float32),
      bias_T[channels].astype(np.float32),
      Site(channels, needed[channels], k),
    )

  def _linear(self, path, layer, source) -> tuple[np.ndarray, np.ndarray]:
    """Returns a matrix's rows of open sources, and its bias with the others.

    In float64: `[S, T]` and `[T]`.
    """
    kernel_IxT = edges_lib.parameter(self.params, path)[layer]
    kernel_IxT = kernel_IxT.astype(np.float64)
    nodes = self._nodes(source, layer)
    bias_T = nodes.mean[~nodes.is_open] @ kernel_IxT[~nodes.is_open]
    bias_T = bias_T + self._bias(path, layer)
    return kernel_IxT[nodes.is_open], bias_T

  def _bias(self, path, layer) -> np.ndarray | float:
    p = edges_lib.parameter(self.params, path.removesuffix("/kernel"))
    return p["bias"][layer].astype(np.float64) if "bias" in p else 0.0

  def _mlp(self, layer: int, source: Input) -> Mlp:
    activation = program_lib.NUMPY.activations[self.config.activation]
    up = self._linear(sites.C_FC, layer, "mlp.act_in")
    down = self._linear(sites.MLP_C_PROJ, layer, "mlp.post_act")
    return Mlp(
      source,
      self._map("mlp.post_act", layer, *up, activation=activation),
      self._map("mlp.resid_delta", layer, *down),
    )

  def _attention(self, layer: int, source: Input) -> Attention:
    c = self.config
    write_DxT = edges_lib.parameter(self.params, sites.ATTN_C_PROJ)[layer]
    write_DxT = write_DxT.astype(np.float64)
    value = self._nodes("attn.v", layer)
    bias_T = np.zeros(c.d_model) + self._bias(sites.ATTN_C_PROJ, layer)
    heads, uniform, shares, of_uniform = [], [], [], []
    live_D = np.zeros(c.d_model, bool)
    for index in range(c.n_head):
      part = slice(index * c.d_head, (index + 1) * c.d_head)
      closed_K = np.where(value.is_open, 0, value.mean)[part]
      share_T = closed_K @ write_DxT[part]
      head = self._head(layer, index)
      has_share = c.sink and bool(share_T.any())
      if not c.sink:
        bias_T = bias_T + share_T
      looks_alike = not len(head.channels) and head.turned_L is None
      if len(head.v_at) or (has_share and not looks_alike):
        live_D[part] = True
        heads.append(head._replace(has_share=has_share))
        shares += [share_T] if has_share else []
      elif has_share:
        scaled = head.constant * program_lib.score_scale(c)
        uniform.append(Uniform(index, head.sink - scaled))
        of_uniform.append(share_T)
    qkv_SxT, qkv_bias_T = self._linear(sites.C_ATTN, layer, "attn.act_in")
    weights, biases = np.split(qkv_SxT, 3, -1), np.split(qkv_bias_T, 3)
    query, key, value_map = (
      self._map(f"attn.{name}", layer, weight, bias, live_D)
      for name, weight, bias in zip("qkv", weights, biases, strict=True)
    )
    heads = [self._numbered(h, query, key, value_map) for h in heads]
    rows = [write_DxT[value.is_open], *shares, *of_uniform]
    weight_SxT = np.concatenate([r.reshape(-1, c.d_model) for r in rows])
    write = self._map("attn.resid_delta", layer, weight_SxT, bias_T)
    return Attention(
      input=source,
      query=query,
      key=key,
      value=value_map,
      window=c.windows[layer] or None if c.windows else None,
      heads=tuple(heads),
      uniform=tuple(uniform),
      write=write,
    )

  def _head(self, layer: int, index: int) -> Head:
    """Returns a head whose channels are the model's, not yet numbered."""
    c = self.config
    part = slice(index * c.d_head, (index + 1) * c.d_head)
    query, key, value = (
      _Nodes(*(x[part] for x in self._nodes(f"attn.{name}", layer)))
      for name in "qkv"
    )
    either_K = query.is_open | key.is_open
    partner_K = np.arange(c.d_head)
    half = self.angle_LxR.shape[1]
    partner_K[: 2 * half] = np.roll(partner_K[: 2 * half], half)
    either_K = either_K | either_K[partner_K]
    fixed = lambda nodes: np.where(nodes.is_open, 0, nodes.mean)[either_K]
    closed = lambda nodes: np.where(either_K, 0, nodes.mean.astype(np.float64))
    turned_L, constant = self._closed_score(closed(query), closed(key))
    sink = None
    if c.sink:
      sink_H = edges_lib.parameter(self.params, sites.SINK)[layer]
      sink = float(sink_H[index])
    offset = index * c.d_head
    at = lambda nodes: np.where(
      nodes.is_open[either_K], offset + np.flatnonzero(either_K), -1
    )
    return Head(
      index=index,
      channels=offset + np.flatnonzero(either_K),
      q_at=at(query),
      k_at=at(key),
      q_fixed_J=fixed(query).astype(np.float32),
      k_fixed_J=fixed(key).astype(np.float32),
      constant=constant,
      turned_L=turned_L,
      turn=self._turn(partner_K, either_K),
      sink=sink,
      v_at=offset + np.flatnonzero(value.is_open),
      has_share=False,
    )

  def _closed_score(self, query_K, key_K) -> tuple[np.ndarray | None, float]:
    """Returns a closed head's scores: by distance, and what that leaves."""
    half = self.angle_LxR.shape[1]
    constant = float(query_K[2 * half :] @ key_K[2 * half :])
    (q1, q2), (k1, k2) = (np.split(x[: 2 * half], 2) for x in (query_K, key_K))
    along, across = q1 * k1 + q2 * k2, q1 * k2 - q2 * k1
    if not np.any([along, across]):
      return None, constant
    turned_L = np.cos(self.angle_LxR) @ along + np.sin(self.angle_LxR) @ across
    return turned_L.astype(np.float32), constant

  def _turn(self, partner_K, kept_K) -> Turn | None:
    """Returns how the kept channels of a head turn; None if they do not."""
    kept = np.flatnonzero(kept_K)
    partner = np.searchsorted(kept, partner_K[kept])
    order = partner - np.arange(len(kept))
    if not order.any():
      return None
    num_still = len(partner_K) - 2 * self.angle_LxR.shape[1]
    angle_LxK = np.pad(np.tile(self.angle_LxR, 2), ((0, 0), (0, num_still)))
    cos_LxJ, sin_LxJ = np.cos(angle_LxK[:, kept]), np.sin(angle_LxK[:, kept])
    sin_LxJ *= np.where(order > 0, -1, 1)
    return Turn(partner, cos_LxJ.astype(np.float32), sin_LxJ.astype(np.float32))

  def _numbered(self, head: Head, query, key, value) -> Head:
    """Returns a head whose channels are places among its layer's open ones."""

    def places(channels, m):
      opened = m.site.opened
      return np.where(
        channels < 0, len(opened), np.searchsorted(opened, channels)
      )

    return head._replace(
      q_at=places(head.q_at, query),
      k_at=places(head.k_at, key),
      v_at=places(head.v_at, value),
    )

  def _output(self) -> Output:
    c, p = self.config, self.params["ln_f"]
    path = sites.EMBED if c.tied else sites.UNEMBED
    logit_bias_C = edges_lib.parameter(self.params, sites.LOGIT_BIAS)
    weight_DxC = edges_lib.parameter(self.params, path).T.astype(np.float64)
    bigram_VxC = self.params.get(sites.BIGRAM)
    if self.answers is not None:
      weight_DxC = weight_DxC[:, self.answers]
      logit_bias_C = logit_bias_C[self.answers]
      if bigram_VxC is not None:
        bigram_VxC = bigram_VxC[:, self.answers]
    bias_C = logit_bias_C.astype(np.float64)
    if "bias" in p:
      bias_C = bias_C + p["bias"] @ weight_DxC
    weight_DxC = p["scale"][:, None] * weight_DxC
    nodes = self._nodes("final_resid", 0)
    self.rest_VxO = np.where(
      nodes.is_open[self.rest], self.rest_VxO, nodes.mean[self.rest]
    )
    rest_VxC = None
    if self.rest.size:
      rest_VxC = self.rest_VxO @ weight_DxC[self.rest]
      rest_VxC = rest_VxC.astype(np.float32)
    weight_sum_C = weight_DxC.sum(0).astype(np.float32)
    return Output(
      is_open=nodes.is_open[self.wires],
      fixed_R=np.where(nodes.is_open, 0, nodes.mean)[self.wires],
      norm=self._norm(p, self.rest_VxO),
      weight_RxC=weight_DxC[self.wires].astype(np.float32),
      rest_VxC=rest_VxC,
      weight_sum_C=weight_sum_C,
      bias_C=bias_C.astype(np.float32),
      bigram_VxC=bigram_VxC,
    )
