"""A circuit: the nodes kept for one task, the edges between them, its metrics.

An edge is a nonzero weight joining two kept nodes (paper section 2). Residual
channels are wiring between writes and later reads and are not counted. Weights
of the token embedding and unembedding are counted apart.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint, hooks, program, shrink, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import pairs as pairs_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import arrays as arrays_lib
from sparse_jax.utils import errors, files, tables

_FORMAT = "sparse_jax circuit 2"
_EARLIER_FORMATS = ("sparse_jax circuit 1",)
# A directory holds a core and, around it, a robust circuit.
_FILES = {"core": "circuit.json", "robust": "robust.json"}
# What is usual for each of them (`watch/thresholds.py`), if that was measured.
WATCH = "watch.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """The part of a model that does one task.

  `show`, its page in a notebook, comes from `report/notebook.py`, which lies
  above.

  Attributes:
    task: the task's name.
    model_fingerprint: of the model it was cut from (`fingerprint`).
    model_config: shape of that model.
    sparsity: activation sparsity of that model.
    ablation: "mean_pretrain", "mean_task" or "zero": what `means` hold.
    target_loss: task loss it was cut to, in nats, mean over both sides.
    logit_scale: fitted factor on its logits.
    node_mask: per gated site `[layers, width]` bool, true for kept nodes.
    means: per gated site `[layers, width]` float32, values of closed nodes.
    edges: as in circuit.json.
    metrics: numbers by name; losses in nats.
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
  def is_robust(self) -> bool:
    """Whether it was pruned under an adversary outside it."""
    return self.metrics.get("validation_accuracy_lost") is not None

  @property
  def nodes(self) -> list[dict[str, Any]]:
    """Kept nodes as `{"site": "0.attn.q", "index": 3}`, in forward order."""
    names = [name for name in sites.SITES if name in self.node_mask]
    kept = [
      (row, name, index)
      for name in names
      for row, index in zip(*np.nonzero(self.node_mask[name]), strict=True)
    ]
    # Stable: by site, then by index within a layer.
    kept.sort(key=lambda node: (not sites.SITES[node[1]].per_layer, node[0]))
    return [edges_lib.node(name, row, index) for row, name, index in kept]

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
    return hooks.circuit_hook(
      self.model,
      params,
      tokens,
      None,
      self.node_mask,
      self.means,
      self.freeze_norms,
    )

  def apply(
    self,
    params: transformer.Params,
    tokens: jax.Array,
    hook: transformer.Hook = hooks.identity,
  ) -> jax.Array:
    """Returns the circuit's logits: the model with everything else ablated.

    Args:
      params: parameters of the model it was cut from.
      tokens: int `[B, L]`.
      hook: called at every site, after what is outside has been ablated.

    Returns:
      float32 `[B, L, V]`, times the fitted `logit_scale`.
    """
    ablated = self.hook(params, tokens)
    logits = self.model.apply(params, tokens, hooks.compose(ablated, hook))
    return self.logit_scale * logits

  def without(self, *nodes: str) -> "Circuit":
    """Returns the circuit with these nodes ablated, too.

    Their edges go with them, and the metrics, which were measured with them.

    Args:
      nodes: such as "0.attn.q:3", each one of its nodes.

    Raises:
      InputError: if it has no such node.
    """
    node_mask = {name: mask.copy() for name, mask in self.node_mask.items()}
    known = {f"{node['site']}:{node['index']}": node for node in self.nodes}
    for text in nodes:
      if text not in known:
        raise errors.unknown_name("node", text, known)
      node = known[text]
      name, layer = sites.parse_site_id(node["site"], self.model_config.n_layer)
      node_mask[name][layer or 0, node["index"]] = False
    closed = [known[text] for text in nodes]
    edges = [
      edge
      for edge in self.edges
      if edge["from"] not in closed and edge["to"] not in closed
    ]
    num_nodes = sum(int(np.sum(mask)) for mask in node_mask.values())
    sizes = {"num_nodes": num_nodes, "num_edges": len(edges)}
    return dataclasses.replace(
      self, node_mask=node_mask, edges=edges, metrics=sizes
    )

  def evaluator(
    self, params: transformer.Params, sequences: sequences_lib.Sequences
  ) -> mask_evaluator.MaskEvaluator:
    """Returns what runs any mask of the circuit's sites on these prompts."""
    return mask_evaluator.on_mesh(
      self.model, params, self.means, sequences, self.freeze_norms
    )

  def logit_differences(
    self,
    params: transformer.Params,
    prompts: pairs_lib.Pairs | pairs_lib.Prompts | sequences_lib.Sequences,
  ) -> dict[str, np.ndarray]:
    """Returns how far the correct answer leads, of three models by name.

    Args:
      params: parameters of the model it was cut from.
      prompts: such as `task.pairs("test", 64)`.

    Returns:
      "full model", "circuit" and "without it", each the correct answer's logit
      minus the incorrect one's, `[S]`, in nats; S is 2N for N pairs, in the
      order of `Pairs.sequences`. The circuit's are calibrated as it was fitted.
    """
    if not isinstance(prompts, sequences_lib.Sequences):
      prompts = sequences_lib.task_sequences(prompts)
    evaluator, kept = self.evaluator(params, prompts), self.node_mask
    full_S, alone_S, without_S = evaluator.logit_differences(
      {
        name: np.stack([np.ones_like(mask), mask, ~mask])
        for name, mask in kept.items()
      }
    )
    return {
      "full model": full_S,
      "circuit": self.calibrated(alone_S, prompts),
      "without it": without_S,
    }

  def calibrated(
    self, diff_S: np.ndarray, sequences: sequences_lib.Sequences
  ) -> np.ndarray:
    """Returns logit differences `[S]` with the circuit's scale and shift."""
    sign_S = logit_difference_lib.answer_sign(
      sequences.correct, sequences.incorrect
    )
    calibration = logit_difference_lib.Calibration(
      self.logit_scale, self.details.get("answer_shift", 0.0)
    )
    return np.asarray(
      logit_difference_lib.calibrate(diff_S, sign_S, calibration)
    )

  def compact(
    self, params: transformer.Params, answers: Sequence[int] | None = None
  ) -> program.Program:
    """Returns the circuit as small arrays and a pure function of tokens.

    `program(tokens)` gives the logits that `apply` gives, up to rounding, by
    JAX; `program.numpy(tokens)` does so by NumPy. Means are folded into biases.
    What lies outside the circuit stays where a value inside depends on it:
    channels that compete in AbsTopK, the residual stream for its norms, the
    share that sinks leave of closed heads, and what rotary positions turn
    together with an open query or key (`model/shrink.py`).

    Args:
      params: parameters of the model it was cut from.
      answers: tokens whose logits are wanted; None is all.

    Raises:
      InputError: if an answer is not a token, or for `freeze_norms`: its norms
        are the whole model's, which therefore has to run.
    """
    if self.freeze_norms:
      raise errors.InputError(
        f"circuit of {self.task}: freeze_norms=True is not accepted; need"
        " False: frozen norms are those of the whole model"
      )
    return shrink.shrink(
      self.model, params, self.node_mask, self.means, self.logit_scale, answers
    )

  def save(
    self, directory: files.PathLike, robust: "Circuit | None" = None
  ) -> None:
    """Writes circuit.json and arrays.npz; earlier circuits are replaced.

    Args:
      directory: of this circuit alone, or of both.
      robust: the circuit around this one, for robust.json.

    Raises:
      InputError: if the directory holds something else or cannot be written, or
        `robust` does not contain this circuit.
    """
    if robust is not None:
      _check_contains(robust, self)
    with files.replace_directory(directory, "circuit.json") as new:
      np.savez(
        new / "arrays.npz",
        **{f"means/{k}": np.asarray(v) for k, v in self.means.items()},
      )
      circuits = {"core": self} | ({"robust": robust} if robust else {})
      for name, circuit in circuits.items():
        files.write_json(new / _FILES[name], circuit._to_json())
      usual = {n: c.details.get("watch") for n, c in circuits.items()}
      if any(usual.values()):
        files.write_json(new / WATCH, usual)

  def _to_json(self) -> dict[str, Any]:
    details = {k: v for k, v in self.details.items() if k != "watch"}
    return {
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
      **details,
    }

  @classmethod
  def load(
    cls,
    directory: files.PathLike,
    which: str = "core",
    *,
    model: transformer.Model | None = None,
    params: transformer.Params | None = None,
  ) -> "Circuit":
    """Reads a circuit directory.

    Args:
      directory: as `save` writes it.
      which: "core", or "robust" for the one around it.
      model: the model that it has to be cut from; None does not check.
      params: the parameters that it has to be cut from; None does not check.

    Raises:
      InputError: if a file is missing, damaged or inconsistent, or the circuit
        is another model's.
    """
    directory = pathlib.Path(directory)
    if which not in _FILES:
      raise errors.unknown_name("circuit", which, _FILES)
    path = directory / _FILES[which]
    raw = files.read_json(path, f"the {path.name} of a circuit directory")
    usual = {}
    if (directory / WATCH).is_file():
      usual = files.read_json(directory / WATCH, "what experiments.alarms fits")
    try:
      if usual.get(which) is not None:
        raw["watch"] = usual[which]
      _check_format(path, raw.pop("format"))
      config = config_lib.from_dict(
        config_lib.ModelConfig, raw.pop("model"), "model."
      )
      shapes = {name: config.site_shape(name) for name in raw.pop("sites")}
      # First: the file shows that there is as much as the config says.
      means = _load_means(directory / "arrays.npz", shapes)
      node_mask = {
        name: np.zeros(shape, bool) for name, shape in shapes.items()
      }
      nodes = raw.pop("nodes")
      for node in nodes:
        try:
          name, layer = sites.parse_site_id(node["site"], config.n_layer)
        except errors.InputError:
          raise errors.bad_value(
            f"{path}: site", node["site"][:80], "a site such as 0.attn.q"
          ) from None
        index = node["index"]
        if type(index) is not int or not 0 <= index < config.width(name):
          raise errors.bad_value(
            f"{path}: index of {node['site']}",
            index,
            f"0 to {config.width(name) - 1}",
          )
        node_mask[name][layer or 0, index] = True
      circuit = cls(
        model_config=config,
        sparsity=config_lib.from_dict(
          config_lib.SparsityConfig, raw.pop("sparsity"), "sparsity."
        ),
        node_mask=node_mask,
        means=means,
        **{
          field.name: raw.pop(field.name)
          for field in dataclasses.fields(cls)
          if field.name in raw
        },
        details=raw,
      )
      if len(nodes) != circuit.num_nodes:
        raise ValueError(f"lists a node twice among its {len(nodes)} nodes")
      check_consistent(circuit, str(path))
    except errors.InputError:
      raise
    except (
      KeyError,
      TypeError,
      AttributeError,
      ValueError,
      OverflowError,
    ) as e:
      raise errors.InputError(
        f"{path}: {type(e).__name__} {e}; need a circuit.json as save writes"
      ) from e
    check_model(circuit, str(path), model, params)
    return circuit

  def _summary(self) -> dict[str, Any]:
    return {
      "task": self.task,
      "nodes": self.num_nodes,
      "edges": self.num_edges,
      "test loss": self.metrics.get("test_loss"),
      "full model's test loss": self.metrics.get("full_model_test_loss"),
      "target loss": self.target_loss,
    }

  def __repr__(self) -> str:
    """One line: task, size and losses in nats."""
    parts = (f"{k}: {_shown(v)}" for k, v in self._summary().items())
    return f"Circuit({', '.join(parts)})"

  def _repr_html_(self) -> str:
    rows = [(k, _shown(v)) for k, v in self._summary().items()]
    return tables.html((), rows)


def _check_contains(robust: Circuit, core: Circuit) -> None:
  """Raises InputError unless both are of one model and task, and nested."""
  same = all(
    getattr(robust, name) == getattr(core, name)
    for name in ("task", "model_fingerprint", "ablation")
  )
  inside = robust.node_mask.keys() == core.node_mask.keys() and not any(
    np.any(mask & ~robust.node_mask[name])
    for name, mask in core.node_mask.items()
  )
  if not (same and inside):
    raise errors.InputError(
      f"robust circuit of {robust.task}: need one of the core's model, task and"
      f" ablation that contains it, {core!r}"
    )


def load_all(directory: files.PathLike) -> dict[str, Circuit]:
  """Reads a directory's "core", and the "robust" circuit if there is one."""
  found = {"core": Circuit.load(directory)}
  if (pathlib.Path(directory) / _FILES["robust"]).is_file():
    found["robust"] = Circuit.load(directory, "robust")
    _check_contains(found["robust"], found["core"])
  return found


def in_model(
  circuit: Circuit,
  model: transformer.Model,
  params: transformer.Params,
  means: Mapping[str, np.ndarray],
) -> Circuit:
  """Returns a circuit's nodes in another model of the same shape.

  `means` are that model's ablation values, per site `[layers, width]`. Metrics
  that were measured in the circuit's own model stay behind.
  """
  check_model(circuit, f"circuit of {circuit.task}", model, None)
  edges = edges_lib.find_edges(params, circuit.node_mask)
  sizes = {"num_nodes": circuit.num_nodes, "num_edges": len(edges)}
  return dataclasses.replace(
    circuit,
    model_fingerprint=fingerprint.fingerprint(model, params),
    means={name: np.asarray(means[name]) for name in circuit.node_mask},
    edges=edges,
    metrics=sizes,
  )


def _shown(value: Any) -> str:
  if value is None:
    return "not measured"
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check_format(path: pathlib.Path, found: Any) -> None:
  if found in _EARLIER_FORMATS:
    raise errors.InputError(
      f"{path}: format={found!r} is of an earlier version; need {_FORMAT!r}:"
      " prune again with this version, python -m experiments.prune"
    )
  if found != _FORMAT:
    raise errors.bad_value(f"{path}: format", found, repr(_FORMAT))


def check_model(
  circuit: Circuit,
  name: str,
  model: transformer.Model | None,
  params: transformer.Params | None,
) -> None:
  """Checks that a circuit is of this model; None is not checked."""
  model = circuit.model if model is None else model
  if circuit.model_config != model.config:
    raise errors.InputError(
      f"{name}: its model's shape is not this model's; need the model it was"
      " cut from"
    )
  if params is None:
    return
  own = fingerprint.fingerprint(model, params)
  if own != circuit.model_fingerprint:
    raise errors.InputError(
      f"{name}: model_fingerprint={circuit.model_fingerprint}; this model's is"
      f" {own}; need the model it was cut from"
    )


def check_consistent(circuit: Circuit, name: str) -> None:
  """Checks what a circuit says of itself, without its model.

  Args:
    circuit: of which no part may contradict another.
    name: what messages call it, such as its file.

  Raises:
    InputError: naming what does not fit.
  """

  def refuse(what: str, need: str):
    raise errors.InputError(f"{name}: {what}; need {need}")

  if circuit.ablation not in config_lib.ABLATIONS:
    choices = ", ".join(config_lib.ABLATIONS)
    refuse(f"ablation={circuit.ablation!r}", f"one of {choices}")
  for field, value in (
    ("target_loss", circuit.target_loss),
    ("logit_scale", circuit.logit_scale),
    ("answer_shift", circuit.details.get("answer_shift", 0.0)),
  ):
    if not _is_number(value):
      refuse(f"{field}={value!r}", "a finite number")
  unedited = "an unedited circuit.json"
  if not isinstance(circuit.metrics, Mapping):
    refuse("metrics is no mapping", unedited)
  for field in ("num_nodes", "num_edges"):
    stored, counted = circuit.metrics.get(field), getattr(circuit, field)
    if stored != counted:
      refuse(f"metrics.{field}={stored} but it lists {counted}", unedited)
  seen = set()
  for i, edge in enumerate(circuit.edges):
    try:
      key = _edge_entry(circuit, edge)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as e:
      refuse(f"edges[{i}]: {type(e).__name__} {e}", unedited)
    if key in seen:
      refuse(f"edges[{i}] is listed twice", unedited)
    seen.add(key)


def _edge_entry(circuit: Circuit, edge: Mapping[str, Any]) -> tuple[Any, ...]:
  """Returns what identifies an edge; raises if its ends are not kept nodes."""
  kinds = [k for k in sites.EDGE_KINDS if k.name == edge["kind"]]
  if not kinds:
    raise ValueError(f"kind={edge['kind']!r} is unknown")
  if not _is_number(edge["weight"]):
    raise ValueError(f"weight={edge['weight']!r} is not finite")
  layer = edges_lib.layer_of(edge)
  entry = [edge["kind"], layer]
  for end, name in (("from", kinds[0].source), ("to", kinds[0].target)):
    site, index = edge[end]["site"], edge[end]["index"]
    mask = circuit.node_mask.get(name)
    if mask is None:  # A site without a mask is wholly open.
      shape = circuit.model_config.n_layer, circuit.model_config.width(name)
      mask = np.ones(shape, bool)
    if site != sites.site_id(name, layer) or not isinstance(index, int):
      raise ValueError(f"{end}={site}:{index} does not fit {edge['kind']}")
    if not (0 <= index < mask.shape[1] and mask[layer, index]):
      raise ValueError(f"{end}={site}:{index} is not one of the nodes")
    entry.append(index)
  return tuple(entry)


def _is_number(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  # Not `math.isfinite`, which cannot take an integer of 400 digits.
  return number and abs(value) <= sys.float_info.max


def _load_means(
  path: pathlib.Path, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, np.ndarray]:
  what = "the means of the circuit's sites"
  arrays = arrays_lib.read_npz(path, what)
  means = {}
  for name, shape in shapes.items():
    if f"means/{name}" not in arrays:
      raise errors.InputError(f"{path} has no means/{name}; need {what}")
    means[name] = arrays[f"means/{name}"]
    if means[name].shape != shape or not np.all(np.isfinite(means[name])):
      raise errors.InputError(
        f"{path}: means/{name} has shape {means[name].shape}; need finite"
        f" values of shape {shape}"
      )
  return means
