"""Edges: the weights between nodes, counted, listed and masked.

An edge is a nonzero weight joining two kept nodes (paper section 2). Residual
channels are wiring between writes and later reads and are not counted. Weights
of the token embedding and unembedding are counted apart.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sparse_jax import sites
from sparse_jax.model import hooks, transformer

# By matrix path, `[layer, in, out]` like the matrix.
EdgeArrays = Mapping[str, jax.Array]


def parameter(params: transformer.Params, path: str) -> jax.Array:
  """Returns the parameter at a path such as `layers/mlp/c_fc/kernel`."""
  return functools.reduce(operator.getitem, path.split("/"), params)


def columns(kind: sites.EdgeKind, matrix: Any) -> slice:
  """Returns which columns of a `[layer, in, out]` matrix are a kind's."""
  width = matrix.shape[-1] // kind.num_blocks
  return slice(kind.block * width, (kind.block + 1) * width)


def entry(edge: Mapping[str, Any], params: Any) -> tuple[str, int, int, int]:
  """Returns (matrix path, layer, row, column) of an edge of circuit.json."""
  kind = next(k for k in sites.EDGE_KINDS if k.name == edge["kind"])
  column = columns(kind, parameter(params, kind.matrix)).start
  column += edge["to"]["index"]
  return kind.matrix, layer_of(edge), edge["from"]["index"], column


def layer_of(edge: Mapping[str, Any]) -> int:
  """Returns the layer of an edge of circuit.json."""
  return int(edge["from"]["site"].split(".")[0])


def edge_weights(
  kind: sites.EdgeKind,
  params: transformer.Params,
  node_mask: Mapping[str, np.ndarray],
) -> np.ndarray:
  """Returns a kind's weights between kept nodes, zero elsewhere.

  They are `[layers, source width, target width]`; the mask is per site
  `[layers, width]`, and a site that it does not have is wholly open.
  """
  kernel = np.asarray(parameter(params, kind.matrix), np.float32)
  weight = kernel[..., columns(kind, kernel)]
  for site, axis in ((kind.source, 2), (kind.target, 1)):
    if site in node_mask:
      weight = weight * np.expand_dims(np.asarray(node_mask[site], bool), axis)
  return weight


def count_edges(
  params: transformer.Params, node_mask: Mapping[str, np.ndarray]
) -> int:
  """Returns the number of nonzero weights between kept nodes."""
  return sum(
    int(np.count_nonzero(edge_weights(kind, params, node_mask)))
    for kind in sites.EDGE_KINDS
  )


def open_edges(
  params: transformer.Params, gates: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns the sum over nonzero weights of what their two gates multiply to.

  Of gates 0 and 1, per site `[layers, width]`, this is `count_edges`; it has a
  slope along them.
  """
  total = jnp.zeros([])
  for kind in sites.EDGE_KINDS:
    matrix = parameter(params, kind.matrix)
    is_edge_LxIxO = (matrix[..., columns(kind, matrix)] != 0).astype(
      jnp.float32
    )
    layers, *widths = is_edge_LxIxO.shape
    source_LxI, target_LxO = (
      gates.get(site, jnp.ones((layers, width)))
      for site, width in zip((kind.source, kind.target), widths, strict=True)
    )
    total += jnp.einsum("li,lio,lo->", source_LxI, is_edge_LxIxO, target_LxO)
  return total


def find_edges(
  params: transformer.Params, node_mask: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """Returns every edge as circuit.json has it, by layer and kind."""
  edges = []
  for kind in sites.EDGE_KINDS:
    weight = edge_weights(kind, params, node_mask)
    edges += [
      {
        "from": node(kind.source, layer, source),
        "to": node(kind.target, layer, target),
        "weight": float(weight[layer, source, target]),
        "kind": kind.name,
      }
      for layer, source, target in np.argwhere(weight)
    ]
  return sorted(edges, key=layer_of)  # Stable: by kind within a layer.


def node(site: str, row: int, index: int) -> dict[str, Any]:
  """Returns a node as circuit.json has it."""
  return {"site": sites.site_id(site, int(row)), "index": int(index)}


def count_token_edges(
  params: transformer.Params,
  node_mask: Mapping[str, np.ndarray],
  prompt_tokens: np.ndarray,
  answer_tokens: np.ndarray,
) -> dict[str, int]:
  """Returns the embedding's and unembedding's edges, counted apart.

  `num_embedding_edges`: nonzero embedding weights of tokens that occur in the
  prompts, into residual channels that some kept node reads.
  `num_unembedding_edges`: nonzero unembedding weights of the answer tokens,
  from residual channels that some kept node writes.
  """
  embed = np.asarray(parameter(params, sites.EMBED))
  tied = sites.UNEMBED.split("/")[0] not in params
  unembed = embed if tied else np.asarray(parameter(params, sites.UNEMBED))

  def count(table_VxD, tokens, site) -> int:
    weight = table_VxD[np.unique(tokens)]
    names = f"attn.{site}", f"mlp.{site}"
    if all(name in node_mask for name in names):
      used = np.any([np.any(node_mask[name], 0) for name in names], 0)
      weight = weight * used[: weight.shape[1]]  # Positions come behind.
    return int(np.count_nonzero(weight))

  return {
    "num_embedding_edges": count(embed, prompt_tokens, "act_in"),
    "num_unembedding_edges": count(unembed, answer_tokens, "resid_delta"),
  }


def kept_edges(
  params: transformer.Params, node_mask: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns, by matrix, which weights are edges between kept nodes."""
  kept: dict[str, np.ndarray] = {}
  for kind in sites.EDGE_KINDS:
    weight = edge_weights(kind, params, node_mask)
    matrix = parameter(params, kind.matrix)
    keep = kept.setdefault(kind.matrix, np.zeros(matrix.shape, bool))
    keep[..., columns(kind, matrix)] |= weight != 0
  return kept


def mask_edges(
  params: transformer.Params, gates: EdgeArrays, means: hooks.SiteArrays
) -> transformer.Params:
  """Returns parameters whose closed edges carry their source's mean.

  Gates are by matrix path, 1 for open and 0 for closed edges; `means` are the
  ablation values, per site `[layers, width]`.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  for path, gate in gates.items():
    source = next(k.source for k in sites.EDGE_KINDS if k.matrix == path)
    closed = flat[path] * (1 - gate)
    constant = jnp.einsum("lio,li->lo", closed, means[source])
    flat[path] = flat[path] * gate
    bias = path.replace("kernel", "bias")
    flat[bias] = flat.get(bias, 0.0) + constant
  return traverse_util.unflatten_dict(flat, sep="/")
