"""The one vocabulary: sites, nodes, edge kinds and parameter paths.

A *site* is a named activation vector, a *node* one channel of one site in one
layer, an *edge* a nonzero weight from a node to a node. Model, masks, means,
edge counts, circuit files and pages all read the tables below; no other module
spells a site or a parameter path itself.

Names are the hook names of the released models (`inference/hook_utils.py` of
openai/circuit_sparsity), without the layer: `attn.q` in layer 3 is `3.attn.q`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax

from sparse_jax.utils import errors

Width = Literal["d_model", "d_in", "d_attn", "d_mlp"]


@dataclasses.dataclass(frozen=True)
class Site:
  """A named activation vector.

  Attributes:
    width: which dimension of the model it has; "d_in" is d_model and, behind
      it, the width of concatenated positions.
    top_k: the released config's name (`afrac_loctypes`) of the AbsTopK that may
      be applied here, or None where there is none. On the residual stream it
      acts as a sublayer leaves it: `resid_in` names the MLP's, so the first
      layer's input is untouched and `final_resid` is not.
    role: "node" for sites whose channels a circuit keeps or ablates, "observe"
      for values that are sums or mixtures of nodes and are only recorded.
  """

  name: str
  width: Width
  per_layer: bool = True
  top_k: str | None = None
  role: Literal["node", "observe"] = "node"


# In the order in which the forward pass reaches them.
SITES: Mapping[str, Site] = {
  site.name: site
  for site in (
    Site("resid_in", "d_model", top_k="resid_post_mlp", role="observe"),
    Site("attn.act_in", "d_in", top_k="attn_in"),
    Site("attn.q", "d_attn", top_k="attn_q"),
    Site("attn.k", "d_attn", top_k="attn_k"),
    Site("attn.v", "d_attn", top_k="attn_v"),
    Site("attn.y", "d_attn", role="observe"),
    Site("attn.resid_delta", "d_model", top_k="attn_out"),
    Site("resid_mid", "d_model", top_k="resid_post_attn", role="observe"),
    Site("mlp.act_in", "d_in", top_k="mlp_in"),
    Site("mlp.post_act", "d_mlp", top_k="mlp_neuron"),
    Site("mlp.resid_delta", "d_model", top_k="mlp_out"),
    Site("final_resid", "d_model", per_layer=False),
  )
}

# Channels a circuit may keep or ablate.
NODE_SITES = tuple(s.name for s in SITES.values() if s.role == "node")
# The eight sites inside the layers: the default for AbsTopK and for pruning.
LAYER_NODE_SITES = tuple(n for n in NODE_SITES if SITES[n].per_layer)


@dataclasses.dataclass(frozen=True)
class EdgeKind:
  """Which slice of which stacked matrix joins which two sites.

  The matrix is the path of a parameter `[layer, in, out]`, of which the edge
  uses one of `num_blocks` equal column blocks: query, key and value are fused.
  """

  name: str
  source: str
  target: str
  matrix: str
  block: int = 0
  num_blocks: int = 1


EMBED = "wte/embedding"
UNEMBED = "lm_head/embedding"
BIGRAM = "bigram_table"
POSITION = "wpe/embedding"
C_ATTN = "layers/attn/c_attn/kernel"
ATTN_C_PROJ = "layers/attn/c_proj/kernel"
C_FC = "layers/mlp/c_fc/kernel"
MLP_C_PROJ = "layers/mlp/c_proj/kernel"
ATTN_NORM, MLP_NORM, LAST_NORM = "layers/ln_1", "layers/ln_2", "ln_f"
SINK = "layers/attn/sink"
LOGIT_BIAS = "logit_bias"

EDGE_KINDS = (
  EdgeKind("query", "attn.act_in", "attn.q", C_ATTN, 0, 3),
  EdgeKind("key", "attn.act_in", "attn.k", C_ATTN, 1, 3),
  EdgeKind("value", "attn.act_in", "attn.v", C_ATTN, 2, 3),
  EdgeKind("write", "attn.v", "attn.resid_delta", ATTN_C_PROJ),
  EdgeKind("up", "mlp.act_in", "mlp.post_act", C_FC),
  EdgeKind("down", "mlp.post_act", "mlp.resid_delta", MLP_C_PROJ),
)


def site_id(name: str, layer: int | None) -> str:
  """Returns the full name of a site: `3.attn.q`, or `final_resid`."""
  return f"{layer}.{name}" if SITES[name].per_layer else name


def parse_site_id(full_name: str, n_layer: int) -> tuple[str, int | None]:
  """Returns (name, layer) of a full name; layer is None for `final_resid`."""
  if full_name in SITES and not SITES[full_name].per_layer:
    return full_name, None
  layer, _, name = full_name.partition(".")
  if name in SITES and SITES[name].per_layer and layer.isdecimal():
    if int(layer) < n_layer:
      return name, int(layer)
  raise errors.unknown_name("site", full_name, all_site_ids(n_layer))


def all_site_ids(n_layer: int) -> tuple[str, ...]:
  """Returns every full site name of a model, in forward order."""
  in_layers = [name for name, site in SITES.items() if site.per_layer]
  ids = [f"{layer}.{name}" for layer in range(n_layer) for name in in_layers]
  return (*ids, *(name for name in SITES if name not in in_layers))


def num_rows(name: str, n_layer: int) -> int:
  """Returns the leading size of a site's `[layer, width]` arrays."""
  return n_layer if SITES[name].per_layer else 1


def path_name(path) -> str:
  """Returns a pytree key path as `layers/attn/c_attn/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
