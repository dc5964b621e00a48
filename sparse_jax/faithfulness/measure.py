"""All evidence of one circuit, and whether stored evidence reproduces."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.faithfulness import (
  attention,
  controls,
  criteria,
  evidence,
  importance,
  interchange,
  robustness,
)
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, progress

# Recomputed values may differ by rounding on another machine.
_TOLERANCE = 5e-3
# Prunings differ more: rounding decides near ties, step by step.
_CONTROL_RATIO = 1.5
# What may be left out of a second measurement: it needs the files that natural
# prompts came from, or minutes.
OPTIONAL = ("natural", "controls")
_IMPORTANCE_PAIRS = 16


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


def check_circuit(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
) -> None:
  """Checks that a circuit is this model's and has not been edited.

  Raises:
    InputError: naming what does not fit.
  """

  def refuse(what: str, need: str):
    raise errors.InputError(f"circuit of {circuit.task}: {what}; need {need}")

  found = fingerprint_lib.fingerprint(model, params)
  if circuit.model_fingerprint != found:
    refuse(
      f"model_fingerprint={circuit.model_fingerprint}; this model's is {found}",
      "the model it was cut from",
    )
  if circuit.model_config != model.config:
    refuse("its model's shape is not this model's", "an unedited circuit.json")
  if circuit.ablation not in config_lib.ABLATIONS:
    choices = ", ".join(config_lib.ABLATIONS)
    refuse(f"ablation={circuit.ablation!r}", f"one of {choices}")
  shift = circuit.details.get("answer_shift", 0.0)
  for name, value in (
    ("target_loss", circuit.target_loss),
    ("logit_scale", circuit.logit_scale),
    ("answer_shift", shift),
  ):
    if not _is_number(value):
      refuse(f"{name}={value!r}", "a finite number")
  if not isinstance(circuit.metrics, Mapping):
    refuse("metrics is no mapping", "an unedited circuit.json")
  try:
    listed = sorted(map(_edge_key, circuit.edges))
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    refuse(f"its edges: {type(e).__name__} {e}", "an unedited circuit.json")
  for name in ("num_nodes", "num_edges"):
    stored, counted = circuit.metrics.get(name), getattr(circuit, name)
    if stored != counted:
      refuse(
        f"metrics.{name}={stored} but circuit.json lists {counted}",
        "a circuit.json that was not edited",
      )
  own = edges_lib.find_edges(params, circuit.node_mask)
  if sorted(map(_edge_key, own)) != listed:
    refuse(
      "its edges are not the model's nonzero weights between its nodes",
      "a circuit.json that was not edited",
    )


def _is_number(value) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and bool(np.isfinite(value))
  )


def _edge_key(edge) -> tuple[Any, ...]:
  ends = [(str(edge[e]["site"]), int(edge[e]["index"])) for e in ("from", "to")]
  return str(edge["kind"]), *ends, round(float(edge["weight"]), 5)


def measure(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  task: tasks_lib.Task,
  trust: Trust,
) -> dict[str, Any]:
  """Returns `metrics.faithfulness`: all evidence, plain values fit for JSON.

  Raises:
    InputError: if the circuit is not this model's, or was edited.
  """
  check_circuit(model, params, circuit)
  config, seed = trust.config, trust.seed
  splits = sequences_lib.make_splits(task, config, seed)
  ablations = {
    name: means_lib.ablation_values(
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
  groups = {}
  if trust.natural is not None and len(trust.natural):
    arrays = map(jnp.asarray, trust.natural.sequences())
    prompts["natural"] = sequences_lib.Sequences(*arrays)
    groups["natural"] = trust.natural.names
  few = sequences_lib.first_pairs(splits.train, _IMPORTANCE_PAIRS)
  steps = {
    "sufficiency_and_necessity": evidence.sufficiency_and_necessity,
    "agreement": lambda s: evidence.agreement(s, prompts, groups),
    "interchange": interchange.interchange,
    "partial_ablation": robustness.partial_ablation,
    "frozen_norms": robustness.frozen_norms,
    "attention": attention.attention,
    "importance": lambda s: importance.importance(s, few),
  }
  found: dict[str, Any] = {
    "ablation": circuit.ablation,
    "target_loss": circuit.target_loss,
    "seed": seed,
    "prune": config_lib.to_dict(config),
  }
  with progress.progress_bar(len(steps), 0, f"examining {task.name}") as bar:
    for name, step in steps.items():
      found[name] = step(subject)
      bar.update()
  if trust.with_controls:
    found["controls"] = controls.run(
      model,
      params,
      circuit,
      task,
      config,
      trust.pretrain_means,
      splits,
      seed + 1,
    )
  found["verdict"] = criteria.verdict(found)
  return found


def reproduce(stored: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
  """Returns what is stored and a second measurement contradicts, as lines.

  An estimate reproduces if each of the two values lies in the other's interval,
  widened by rounding: an interval that was stretched does not help. Other
  numbers have to be equal up to rounding. Controls reproduce if they meet the
  target again, or miss it again, with about as many nodes. What is `OPTIONAL`
  may be missing from the second measurement, with the verdict on it, and
  controls from what is stored.

  Args:
    stored: `metrics.faithfulness` of a circuit.
    again: the same, measured anew.
  """
  wrong = _contradictions(stored, again, "")
  if isinstance(stored, Mapping) and not left_out(stored, again):
    verdict = _verdict_on(stored, again)
    if stored.get("verdict") != verdict:
      wrong.append(f"verdict: {stored.get('verdict')!r}, now {verdict!r}")
  return wrong


def _verdict_on(
  stored: Mapping[str, Any], again: Mapping[str, Any]
) -> str | None:
  """Returns the second verdict, on controls only if they are stored too."""
  if "controls" not in again or "controls" in stored:
    return again.get("verdict")
  return criteria.verdict({k: v for k, v in again.items() if k != "controls"})


def left_out(stored: Any, again: Any) -> list[str]:
  """Returns which optional parts were stored and not measured again."""
  if not isinstance(stored, Mapping) or not isinstance(again, Mapping):
    return []
  found = []
  for name, value in stored.items():
    if name not in again:
      found += [name] if name in OPTIONAL else []
    else:
      found += left_out(value, again[name])
  return found


def headline(
  metrics_of_circuit: Mapping[str, Any], again: Mapping[str, Any]
) -> list[str]:
  """Returns which of a circuit's own test figures do not reproduce.

  Args:
    metrics_of_circuit: `metrics` of circuit.json.
    again: its evidence, measured anew.
  """
  parts = again["sufficiency_and_necessity"]
  own = parts[again["ablation"]]
  wrong = []
  for prefix, scored in (
    ("", own["circuit"]),
    ("full_model_", parts["full_model"]),
    ("without_circuit_", own["without_circuit"]),
  ):
    for name in ("loss", "accuracy"):
      key = f"{prefix}test_{name}"
      if key not in metrics_of_circuit:
        continue
      value, new = metrics_of_circuit[key], scored[name]
      if not (_is_number(value) and _within(value, new)):
        wrong.append(f"metrics.{key}: {value}, now {_shown(new)}")
  return wrong


def _is_estimate(value) -> bool:
  return (
    isinstance(value, Mapping)
    and set(value) == {"value", "low", "high"}
    and all(map(_is_number, value.values()))
  )


def _within(value: float, estimate: Mapping[str, float]) -> bool:
  low, high = estimate["low"] - _TOLERANCE, estimate["high"] + _TOLERANCE
  return low <= value <= high


def _shown(value) -> str:
  if _is_estimate(value):
    return f"{value['value']:.4f} in [{value['low']:.4f}, {value['high']:.4f}]"
  text = repr(value)
  return text if len(text) < 60 else text[:57] + "..."


def _contradictions(stored, again, path: str) -> list[str]:
  differs = [f"{path or 'trust'}: {_shown(stored)}, now {_shown(again)}"]
  if _is_estimate(stored) and _is_estimate(again):
    both = _within(stored["value"], again) and _within(again["value"], stored)
    # A value outside its own interval was not measured with it.
    return [] if both and _within(stored["value"], stored) else differs
  if isinstance(stored, Mapping) and isinstance(again, Mapping):
    wrong = []
    for name, value in stored.items():
      where = f"{path}.{name}" if path else str(name)
      if where == "verdict":
        continue
      if name not in again:
        if name not in OPTIONAL:
          wrong.append(f"{where} was not measured again")
      elif where == "controls":
        wrong += _control_contradictions(value, again[name])
      else:
        wrong += _contradictions(value, again[name], where)
    return wrong
  if isinstance(stored, list) and isinstance(again, list):
    if len(stored) != len(again):
      return [f"{path}: {len(stored)} entries, now {len(again)}"]
    return [
      line
      for i, (a, b) in enumerate(zip(stored, again, strict=True))
      for line in _contradictions(a, b, f"{path}[{i}]")
    ]
  if _is_number(stored) and _is_number(again):
    near = abs(stored - again) <= _TOLERANCE + 0.02 * abs(again)
    return [] if near else differs
  return [] if type(stored) is type(again) and stored == again else differs


def _control_contradictions(stored, again) -> list[str]:
  wrong = []
  for name, new in again.items():
    if not isinstance(new, Mapping) or "meets_target" not in new:
      continue
    old = stored.get(name) if isinstance(stored, Mapping) else None
    old = old if isinstance(old, Mapping) else {}
    if old.get("meets_target") != new["meets_target"]:
      wrong.append(
        f"controls.{name}.meets_target: {old.get('meets_target')}, now"
        f" {new['meets_target']}"
      )
    sizes = old.get("num_nodes"), new["num_nodes"]
    close = _is_number(sizes[0]) and max(sizes) <= _CONTROL_RATIO * min(sizes)
    if new["meets_target"] and not close:
      wrong.append(f"controls.{name}.num_nodes: {sizes[0]}, now {sizes[1]}")
  return wrong
