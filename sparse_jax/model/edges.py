"""Edges: the weights between nodes, counted, listed and masked.

An edge is a nonzero weight joining two kept nodes (paper section 2). Residual
channels are wiring between writes and later reads and are not counted. Weights
of the token embedding and unembedding are counted apart.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import sites
from sparse_jax.model import hooks, transformer

# By matrix path, `[layer, in, out]` like the matrix.
EdgeArrays = Mapping[str, jax.Array]


def parameter(params: transformer.Params, path: str) -> jax.Array:
  """Returns the parameter at a path such as `layers/mlp/c_fc/kernel`."""
  for key in path.split("/"):
    params = params[key]
  return params


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

  Args:
    kind: which edges.
    params: the model's.
    node_mask: per site `[layers, width]` of booleans; a site that is absent is
      wholly open.

  Returns:
    `[layers, source width, target width]`.
  """
  kernel = np.asarray(parameter(params, kind.matrix), np.float32)
  weight = kernel[..., columns(kind, kernel)]
  if kind.source in node_mask:
    source = np.asarray(node_mask[kind.source], bool)
    weight = weight * source[:, :, None]
  if kind.target in node_mask:
    weight = weight * np.asarray(node_mask[kind.target], bool)[:, None, :]
  return weight


def count_edges(
  params: transformer.Params, node_mask: Mapping[str, np.ndarray]
) -> int:
  """Returns the number of nonzero weights between kept nodes."""
  return sum(
    int(np.count_nonzero(edge_weights(kind, params, node_mask)))
    for kind in sites.EDGE_KINDS
  )


def find_edges(
  params: transformer.Params, node_mask: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """Returns every edge as circuit.json has it, by layer and kind."""
  edges = []
  for kind in sites.EDGE_KINDS:
    weight = edge_weights(kind, params, node_mask)
    for layer, source, target in zip(*np.nonzero(weight), strict=True):
      edges.append(
        {
          "from": node(kind.source, layer, source),
          "to": node(kind.target, layer, target),
          "weight": float(weight[layer, source, target]),
          "kind": kind.name,
        }
      )
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
  reads = _any_channel(node_mask, ("attn.act_in", "mlp.act_in"))
  writes = _any_channel(node_mask, ("attn.resid_delta", "mlp.resid_delta"))
  embed = np.asarray(parameter(params, sites.EMBED))
  if isinstance(reads, np.ndarray):
    reads = reads[: embed.shape[1]]  # Concatenated positions come behind.
  tied = sites.UNEMBED.split("/")[0] not in params
  unembed = embed if tied else np.asarray(parameter(params, sites.UNEMBED))
  return {
    "num_embedding_edges": int(
      np.count_nonzero(embed[np.unique(prompt_tokens)] * reads)
    ),
    "num_unembedding_edges": int(
      np.count_nonzero(unembed[np.unique(answer_tokens)] * writes)
    ),
  }


def _any_channel(node_mask, names) -> np.ndarray | bool:
  if any(name not in node_mask for name in names):
    return True
  return np.any([np.any(node_mask[name], 0) for name in names], 0)


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

  Args:
    params: the model's; every masked matrix needs a bias beside it.
    gates: by matrix path, 1 for open and 0 for closed edges.
    means: ablation values, per site `[layers, width]`.
  """
  masked = params
  for path, gate in gates.items():
    source = next(k.source for k in sites.EDGE_KINDS if k.matrix == path)
    kernel = parameter(params, path)
    closed = kernel * (1 - gate)
    constant = jnp.einsum("lio,li->lo", closed, means[source])
    group = path.rpartition("/")[0]
    linear = dict(parameter(params, group))
    linear["kernel"] = kernel * gate
    linear["bias"] = linear.get("bias", 0.0) + constant
    masked = _replaced(masked, group.split("/"), linear)
  return masked


def _replaced(tree, path, value):
  if not path:
    return value
  return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}
