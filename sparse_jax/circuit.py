"""A circuit: the nodes kept for one task, the edges between them, its figures.

An edge is a nonzero weight joining two kept nodes (paper section 2). Residual
channels are wiring between writes and later reads and are not counted. Weights
of the token embedding and unembedding are counted apart.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.utils import errors, files

_FORMAT = "sparse_jax circuit 1"


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """The part of a model that does one task.

  Attributes:
    task: the task's name.
    model_fingerprint: of the model it was cut from (`checkpoint.fingerprint`).
    model_config: shape of that model.
    sparsity: activation sparsity of that model.
    ablation: "mean_pretrain", "mean_task" or "zero": what `means` hold.
    target_loss: task loss it was cut to, in nats, mean over both sides.
    logit_scale: fitted factor on its logits.
    node_mask: per gated site `[layers, width]` bool, true for kept nodes.
    means: per gated site `[layers, width]` float32, values of closed nodes.
    edges: as in circuit.json.
    metrics: figures by name; losses in nats.
    freeze_norms: whether it runs with the whole model's norms.
    details: further contents of circuit.json, by key.
  """

  task: str
  model_fingerprint: str
  model_config: config_lib.ModelConfig
  sparsity: config_lib.SparsityConfig
  ablation: str
  target_loss: float
  logit_scale: float
  node_mask: Mapping[str, np.ndarray]
  means: Mapping[str, np.ndarray]
  edges: list[dict[str, Any]]
  metrics: dict[str, Any]
  freeze_norms: bool = False
  details: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def num_nodes(self) -> int:
    """Number of kept nodes."""
    return sum(int(np.sum(mask)) for mask in self.node_mask.values())

  @property
  def num_edges(self) -> int:
    """Number of nonzero weights between kept nodes."""
    return len(self.edges)

  @property
  def nodes(self) -> list[dict[str, Any]]:
    """Kept nodes as `{"site": "0.attn.q", "index": 3}`, in forward order."""
    found = [
      (row, list(sites.SITES).index(site), index)
      for site, mask in self.node_mask.items()
      for row, index in zip(*np.nonzero(mask), strict=True)
    ]
    names = list(sites.SITES)
    single = lambda node: not sites.SITES[names[node[1]]].per_layer
    found.sort(key=lambda node: (single(node), *node))
    return [
      edges_lib.node(names[site], row, index) for row, site, index in found
    ]

  @property
  def model(self) -> transformer.Model:
    """The model it runs in."""
    return transformer.Model(self.model_config, self.sparsity)

  def hook(
    self, params: transformer.Params, tokens: jax.Array
  ) -> transformer.Hook:
    """Returns the hook that ablates everything outside the circuit.

    Args:
      params: parameters of the model it was cut from.
      tokens: int `[B, L]`, what it is going to run on.
    """
    hook = hooks.gate(
      jax.tree.map(jnp.asarray, dict(self.node_mask)),
      jax.tree.map(jnp.asarray, dict(self.means)),
    )
    if not self.freeze_norms:
      return hook
    full: dict[str, jax.Array] = {}
    self.model.residual(params, tokens, hooks.record(full))
    return hooks.compose(hooks.freeze_norms_at(full), hook)

  def apply(self, params: transformer.Params, tokens: jax.Array) -> jax.Array:
    """Returns the circuit's logits: the model with everything else ablated.

    Args:
      params: parameters of the model it was cut from.
      tokens: int `[B, L]`.

    Returns:
      float32 `[B, L, V]`, times the fitted `logit_scale`.
    """
    logits = self.model.apply(params, tokens, self.hook(params, tokens))
    return self.logit_scale * logits

  def save(self, directory: files.PathLike) -> None:
    """Writes circuit.json and arrays.npz; an earlier circuit is replaced.

    Raises:
      InputError: if the directory holds something else or cannot be written.
    """
    with files.replace_directory(directory, "circuit.json") as new:
      np.savez(
        new / "arrays.npz",
        **{f"means/{k}": np.asarray(v) for k, v in self.means.items()},
      )
      files.write_json(
        new / "circuit.json",
        {
          "format": _FORMAT,
          "task": self.task,
          "model_fingerprint": self.model_fingerprint,
          "model": config_lib.to_dict(self.model_config),
          "sparsity": config_lib.to_dict(self.sparsity),
          "ablation": self.ablation,
          "freeze_norms": self.freeze_norms,
          "target_loss": self.target_loss,
          "logit_scale": self.logit_scale,
          "sites": list(self.node_mask),
          "nodes": self.nodes,
          "edges": self.edges,
          "metrics": self.metrics,
          **self.details,
        },
      )

  @classmethod
  def load(cls, directory: files.PathLike) -> "Circuit":
    """Reads a circuit directory.

    Raises:
      InputError: if a file is missing, damaged or inconsistent.
    """
    directory = pathlib.Path(directory)
    path = directory / "circuit.json"
    raw = files.read_json(path, "the circuit.json of a circuit directory")
    try:
      if raw.pop("format") != _FORMAT:
        raise KeyError("format")
      config = config_lib.from_dict(
        config_lib.ModelConfig, raw.pop("model"), "model."
      )
      node_mask = {
        name: np.zeros(
          (sites.num_rows(name, config.n_layer), config.width(name)), bool
        )
        for name in raw.pop("sites")
      }
      for node in raw.pop("nodes"):
        try:
          name, layer = sites.parse_site_id(node["site"], config.n_layer)
        except errors.InputError:
          raise errors.bad_value(
            f"{path}: site", node["site"][:80], "a site such as 0.attn.q"
          ) from None
        if not 0 <= node["index"] < config.width(name):
          raise errors.bad_value(
            f"{path}: index of {node['site']}",
            node["index"],
            f"0 to {config.width(name) - 1}",
          )
        node_mask[name][layer or 0, node["index"]] = True
      circuit = cls(
        model_config=config,
        sparsity=config_lib.from_dict(
          config_lib.SparsityConfig, raw.pop("sparsity"), "sparsity."
        ),
        node_mask=node_mask,
        means=_load_means(directory / "arrays.npz", node_mask),
        **{
          field.name: raw.pop(field.name)
          for field in dataclasses.fields(cls)
          if field.name in raw
        },
        details=raw,
      )
    except errors.InputError:
      raise
    except (KeyError, TypeError, AttributeError, ValueError) as e:
      raise errors.InputError(
        f"{path}: {type(e).__name__} {e}; need a circuit.json as save writes"
      ) from e
    return circuit


def _load_means(
  path: pathlib.Path, node_mask: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      means = {name: arrays[f"means/{name}"] for name in node_mask}
  except Exception as e:
    raise errors.InputError(
      f"{path}: {type(e).__name__} {e}; need the means of the circuit's sites"
    ) from e
  for name, mask in node_mask.items():
    if means[name].shape != mask.shape or not np.all(np.isfinite(means[name])):
      raise errors.InputError(
        f"{path}: means/{name} has shape {means[name].shape}; need finite"
        f" values of shape {mask.shape}"
      )
  return means
