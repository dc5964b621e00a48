"""Which kept nodes lie on a path from the input to the answer.

A path follows edges, residual channels (wiring between writes and later reads)
and, in attention, a head: its queries and keys act on what its values carry.
"""

from collections.abc import Mapping

import numpy as np

from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import transformer

_IN_ATTENTION = ("attn.q", "attn.k", "attn.v")


def on_a_path(
  params: transformer.Params,
  node_mask: Mapping[str, np.ndarray],
  d_head: int,
  answer_tokens: np.ndarray,
  parallel: bool = False,
) -> dict[str, np.ndarray]:
  """Returns the kept nodes that the input reaches and that reach the answer.

  Args:
    params: the model's parameters.
    node_mask: per site inside the layers `[layers, width]` bool.
    d_head: width of a head.
    answer_tokens: int, the answers' tokens.
    parallel: whether an MLP reads what the attention beside it reads.

  Returns:
    A mask like `node_mask`, a subset of it; sites outside the layers and sites
    without a mask stay as they are.
  """
  joined: dict[str, list[tuple[str, np.ndarray]]] = {}
  for kind in sites.EDGE_KINDS:
    weight = edges_lib.edge_weights(kind, params, node_mask) != 0
    joined.setdefault(kind.target, []).append((kind.source, weight))
  n_layer = len(next(iter(joined["attn.q"]))[1])
  kept = {
    name: np.asarray(node_mask[name], bool)
    for name in sites.LAYER_NODE_SITES
    if name in node_mask
  }
  widths = _widths(joined)
  for name in sites.LAYER_NODE_SITES:
    kept.setdefault(name, np.ones((n_layer, widths[name]), bool))
  graph = params, joined, kept, n_layer, d_head, parallel
  reached, useful = _reached(*graph), _useful(*graph, answer_tokens)
  return {
    name: reached[name] & useful[name] if name in kept else np.asarray(mask)
    for name, mask in node_mask.items()
  }


def _widths(joined):
  widths = {}
  for target, sources in joined.items():
    for source, weight in sources:
      widths[source], widths[target] = weight.shape[1:]
  return widths


def _heads(nodes, d_head):
  """Returns, for every channel, whether its head has one of the nodes."""
  return np.repeat(nodes.reshape(-1, d_head).any(-1), d_head)


def _reached(params, joined, kept, n_layer, d_head, parallel):
  embed = np.asarray(edges_lib.parameter(params, sites.EMBED))
  live = np.any(embed != 0, 0)
  reached = {name: np.zeros_like(mask) for name, mask in kept.items()}

  def read(name, layer, live):
    channels = np.ones(kept[name].shape[1], bool)
    channels[: len(live)] = live  # Concatenated positions come behind: inputs.
    reached[name][layer] = kept[name][layer] & channels

  def follow(name, layer):
    comes = np.zeros(kept[name].shape[1], bool)
    for source, weight in joined[name]:
      comes |= reached[source][layer] @ weight[layer]
    reached[name][layer] = kept[name][layer] & comes

  for layer in range(n_layer):
    read("attn.act_in", layer, live)
    for name in _IN_ATTENTION:
      follow(name, layer)
    steered = reached["attn.q"][layer] | reached["attn.k"][layer]
    reached["attn.v"][layer] |= kept["attn.v"][layer] & _heads(steered, d_head)
    follow("attn.resid_delta", layer)
    before, live = live, live | reached["attn.resid_delta"][layer]
    read("mlp.act_in", layer, before if parallel else live)
    follow("mlp.post_act", layer)
    follow("mlp.resid_delta", layer)
    live = live | reached["mlp.resid_delta"][layer]
  return reached


def _useful(params, joined, kept, n_layer, d_head, parallel, answer_tokens):
  tied = sites.UNEMBED.split("/")[0] not in params
  unembed = np.asarray(
    edges_lib.parameter(params, sites.EMBED if tied else sites.UNEMBED)
  )
  wanted = np.any(unembed[np.unique(answer_tokens)] != 0, 0)
  useful = {name: np.zeros_like(mask) for name, mask in kept.items()}

  def write(name, layer, wanted):
    useful[name][layer] = kept[name][layer] & wanted
    for source, weight in joined[name]:
      useful[source][layer] |= weight[layer] @ useful[name][layer]

  def feed(name, layer):
    for source, weight in joined[name]:
      useful[source][layer] |= weight[layer] @ useful[name][layer]

  for layer in reversed(range(n_layer)):
    write("mlp.resid_delta", layer, wanted)
    useful["mlp.post_act"][layer] &= kept["mlp.post_act"][layer]
    feed("mlp.post_act", layer)
    useful["mlp.act_in"][layer] &= kept["mlp.act_in"][layer]
    behind = wanted
    wanted = wanted | useful["mlp.act_in"][layer][: len(wanted)]
    write("attn.resid_delta", layer, behind if parallel else wanted)
    useful["attn.v"][layer] &= kept["attn.v"][layer]
    heads = _heads(useful["attn.v"][layer], d_head)
    for name in ("attn.q", "attn.k"):
      useful[name][layer] = kept[name][layer] & heads
    for name in _IN_ATTENTION:
      feed(name, layer)
    useful["attn.act_in"][layer] &= kept["attn.act_in"][layer]
    wanted = wanted | useful["attn.act_in"][layer][: len(wanted)]
  return useful
