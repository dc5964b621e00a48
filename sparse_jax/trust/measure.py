"""All evidence of one circuit, and whether stored evidence reproduces."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax import checkpoint, errors, metrics, prune, search
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import model as model_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.data import sources
from sparse_jax.trust import claims, controls, evidence

# Recomputed values may differ by rounding on another machine.
_TOLERANCE = 5e-3
_IMPORTANCE_PAIRS = 16
_MEAN_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Trust:
  """What evidence is measured with.

  Attributes:
    config: pruning settings of the circuit; controls use them reduced.
    pretrain_means: the model's means, per site `[layers, width]`.
    seed: of pairs, random subsets and controls.
    natural: prompts of real files, or None where there are none.
    with_controls: whether to prune the controls as well: minutes.
  """

  config: config_lib.PruneConfig
  pretrain_means: Mapping[str, Any]
  seed: int = 0
  natural: tasks_lib.Prompts | None = None
  with_controls: bool = True


def natural_prompts(
  task: tasks_lib.Task,
  config: config_lib.Config,
  count: int = 64,
) -> tasks_lib.Prompts | None:
  """Returns held-out real prompts of a task, or None if there are none.

  Args:
    task: the task.
    config: what trained the model: its data source and held-out files.
    count: at most so many.
  """
  if task.find_points is None:
    return None
  found = tasks_lib.harvest(
    [task],
    sources.documents(config.data, "eval", progress=True),
    count,
    config.seed,
    config.data.context_length,
    progress=True,
  )
  return found.get(task.name)


def check_circuit(
  model: model_lib.Model,
  params: model_lib.Params,
  circuit: circuit_lib.Circuit,
) -> None:
  """Checks that a circuit is this model's and has not been edited.

  Raises:
    InputError: naming what does not fit.
  """
  found = checkpoint.fingerprint(model, params)
  if circuit.model_fingerprint != found:
    raise errors.InputError(
      f"circuit of {circuit.task}: model_fingerprint="
      f"{circuit.model_fingerprint}; this model's is {found}; need the model it"
      " was cut from"
    )
  for name in ("num_nodes", "num_edges"):
    stored, counted = circuit.metrics.get(name), getattr(circuit, name)
    if stored != counted:
      raise errors.InputError(
        f"circuit of {circuit.task}: metrics.{name}={stored} but circuit.json"
        f" lists {counted}; need a circuit.json that was not edited"
      )
  key = lambda e: (
    e["from"]["site"],
    e["from"]["index"],
    e["to"]["site"],
    e["to"]["index"],
    round(float(e["weight"]), 5),
  )
  model_edges = circuit_lib.find_edges(params, circuit.node_mask)
  if sorted(map(key, model_edges)) != sorted(map(key, circuit.edges)):
    raise errors.InputError(
      f"circuit of {circuit.task}: its edges are not the model's nonzero"
      " weights between its nodes; need a circuit.json that was not edited"
    )


def measure(
  model: model_lib.Model,
  params: model_lib.Params,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  trust: Trust,
) -> dict[str, Any]:
  """Returns `metrics.trust`: all evidence, plain values fit for JSON.

  Raises:
    InputError: if the circuit is not this model's, or was edited.
  """
  check_circuit(model, params, circuit)
  config, seed = trust.config, trust.seed
  splits = search.make_splits(task, config, seed)
  ablations = {
    name: search.ablation_values(
      model,
      params,
      dataclasses.replace(
        config, ablation=name, sites=tuple(circuit.node_mask)
      ),
      trust.pretrain_means,
      splits.train,
    )
    for name in config_lib.ABLATIONS
  }
  ablations[circuit.ablation] = {
    name: jnp.asarray(mean) for name, mean in circuit.means.items()
  }
  subject = evidence.Subject(
    model, params, circuit, ablations, splits.test, seed
  )
  prompts = {
    "test": splits.test,
    "corrupted": evidence.corrupted(splits.test, model.config.vocab_size, seed),
  }
  if trust.natural is not None and len(trust.natural):
    arrays = map(jnp.asarray, trust.natural.sequences())
    prompts["natural"] = prune.Sequences(*arrays)
  few = search.first_pairs(splits.train, _IMPORTANCE_PAIRS)
  steps = {
    "sufficiency_and_necessity": evidence.sufficiency_and_necessity,
    "agreement": lambda s: evidence.agreement(s, prompts),
    "interchange": evidence.interchange,
    "partial_ablation": evidence.partial_ablation,
    "frozen_norms": evidence.frozen_norms,
    "attention": evidence.attention,
    "importance": lambda s: evidence.importance(s, few),
  }
  found: dict[str, Any] = {
    "ablation": circuit.ablation,
    "target_loss": circuit.target_loss,
    "seed": seed,
  }
  with metrics.progress_bar(len(steps), 0, f"examining {task.name}") as bar:
    for name, step in steps.items():
      found[name] = step(subject)
      bar.update()
  if trust.with_controls:
    tokens = np.asarray(splits.train.tokens)
    size = len(tokens) // _MEAN_BATCHES
    found["controls"] = controls.run(
      model,
      params,
      circuit,
      task,
      config,
      trust.pretrain_means,
      tokens[: size * _MEAN_BATCHES].reshape(_MEAN_BATCHES, size, -1),
      seed + 1,
    )
  found["verdict"] = claims.verdict(found)
  return found


def reproduce(
  stored: Mapping[str, Any], again: Mapping[str, Any], prefix: str = ""
) -> list[str]:
  """Returns the stored estimates that a second measurement contradicts.

  An estimate reproduces if the new value lies within its interval, widened by
  rounding. Controls are compared by whether they meet the target.

  Args:
    stored: `metrics.trust` of a circuit.
    again: the same, measured anew.
    prefix: where in the tree, for the messages.
  """
  wrong = []
  for name, value in stored.items():
    path = f"{prefix}{name}"
    if name not in again:
      # Natural prompts need the files they came from, controls minutes.
      if name not in ("natural", "controls"):
        wrong.append(f"{path} was not measured again")
      continue
    new = again[name]
    if name == "controls":
      for control, figures in value.items():
        if isinstance(figures, Mapping) and "meets_target" in figures:
          before, now = figures["meets_target"], new[control]["meets_target"]
          if before != now:
            wrong.append(f"{path}.{control}.meets_target: {before}, now {now}")
    elif isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
      low, high = value["low"] - _TOLERANCE, value["high"] + _TOLERANCE
      inside = low <= value["value"] <= high
      if not (inside and low <= new["value"] <= high):
        wrong.append(
          f"{path}: {value['value']:.4f} in [{value['low']:.4f},"
          f" {value['high']:.4f}], now {new['value']:.4f}"
        )
    elif isinstance(value, Mapping):
      wrong += reproduce(value, new, f"{path}.")
    elif isinstance(value, list):
      for i, (a, b) in enumerate(zip(value, new, strict=False)):
        if isinstance(a, Mapping) and isinstance(b, Mapping):
          wrong += reproduce(a, b, f"{path}[{i}].")
  return wrong
