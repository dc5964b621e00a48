"""The verdict: which criteria a circuit meets, at which thresholds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors, tables

# Losses in nats; intervals are 90% bootstrap intervals over templates or files.
THRESHOLDS: Mapping[str, float] = {
  # Its test loss is at most so many times the target it was cut to.
  "sufficient_over_target": 1.0,
  # Without the circuit the model is near chance: accuracy at most this.
  "necessary_accuracy": 0.75,
  # Without as many random nodes outside it, the model loses at most this much
  # accuracy.
  "specific_accuracy_lost": 0.1,
  # Circuit and model prefer the same answer at least this often.
  "agreement": 0.9,
  "agreement_out_of_template": 0.8,
  # A control may not reach the target with fewer than so many times the nodes.
  "control_size_ratio": 1.5,
  # Swapping in the model's own values moves the loss at most this much.
  "interchange_loss": 0.1,
  # The worst ablation outside the circuit costs at most this much accuracy.
  "adversarial_accuracy_lost": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Criterion:
  """One thing that a faithful circuit has to pass.

  Attributes:
    name: what it says of the circuit.
    holds: whether that is so.
    measured: what was measured, as text.
    need: what makes it hold, as text.
  """

  name: str
  holds: bool
  measured: str
  need: str


@dataclasses.dataclass(frozen=True, repr=False)
class Evidence:
  """The criteria of one circuit; a table in a notebook, lines as text."""

  task: str
  criteria: tuple[Criterion, ...]

  @property
  def holds(self) -> bool:
    """Whether every criterion holds."""
    return not self.failed

  @property
  def failed(self) -> tuple[str, ...]:
    """Names of the criteria that fail."""
    return tuple(c.name for c in self.criteria if not c.holds)

  @property
  def num_held(self) -> str:
    """How many hold of how many, such as "7 of 8"."""
    total = len(self.criteria)
    return f"{total - len(self.failed)} of {total}"

  @property
  def _caption(self) -> str:
    return f"{self.task}: {self.num_held} criteria hold"

  def __repr__(self) -> str:
    lines = [f"  {_mark(c):<6} {c.name}: {c.measured}" for c in self.criteria]
    return "\n".join([self._caption, *lines])

  def _repr_html_(self) -> str:
    rows = [(c.name, _mark(c), c.measured, c.need) for c in self.criteria]
    header = "it is", "", "measured, with its 90% interval", "need"
    return tables.html(header, rows, self._caption)


def _mark(criterion: Criterion) -> str:
  return "holds" if criterion.holds else "FAILS"


def evidence(circuit: circuit_lib.Circuit) -> Evidence:
  """Returns a circuit's evidence, criterion by criterion.

  Raises InputError if none was measured.
  """
  measured = circuit.metrics.get("faithfulness")
  if not measured:
    raise errors.InputError(
      f"circuit of {circuit.task}: it has no evidence; need what"
      " experiments.verify measures"
    )
  return Evidence(circuit.task, tuple(check_criteria(measured)))


def check_criteria(faithfulness: Mapping[str, Any]) -> list[Criterion]:
  """Returns every criterion that `metrics.faithfulness` allows to check.

  Raises InputError if a measure is missing.
  """
  try:
    return _check(faithfulness)
  except KeyError as e:
    raise errors.InputError(
      f"metrics.faithfulness has no {e}; need what experiments.verify measures"
    ) from e


def _check(faithfulness: Mapping[str, Any]) -> list[Criterion]:
  t = THRESHOLDS
  scores = faithfulness["sufficiency_and_necessity"]
  own, full = scores[faithfulness["ablation"]], scores["full_model"]["accuracy"]
  loss = own["circuit"]["loss"]
  most = t["sufficient_over_target"] * faithfulness["target_loss"]
  without = own["without_circuit"]["accuracy"]
  others = own["without_random_others"]["accuracy"]
  anywhere = own["without_random_circuit"]["accuracy"]["value"]
  checked = [
    Criterion(
      "sufficient",
      loss["value"] <= most,
      f"test loss {_interval(loss)}",
      f"at most {most:g}, its target",
    ),
    Criterion(
      "necessary",
      without["value"] <= t["necessary_accuracy"],
      f"accuracy without it {_interval(without)}",
      f"at most {t['necessary_accuracy']:g}",
    ),
    Criterion(
      "specific",
      full["value"] - others["value"] <= t["specific_accuracy_lost"],
      f"accuracy without as many random nodes outside it {_interval(others)},"
      f" of the full model {full['value']:.3f}; drawn anywhere, its own among"
      f" them, {anywhere:.3f}",
      f"at most {t['specific_accuracy_lost']:g} lost",
    ),
  ]
  for name, scored in faithfulness["agreement"].items():
    least = t["agreement"] if name == "test" else t["agreement_out_of_template"]
    share = scored["agreement"]
    checked.append(
      Criterion(
        f"agrees with the model on {name} prompts",
        share["value"] >= least,
        f"same answer on {_interval(share)} of {scored['num_prompts']}",
        f"at least {least:g}",
      )
    )
  losses = [p["loss"]["value"] for p in faithfulness["interchange"]["curve"]]
  moved = max(abs(value - losses[0]) for value in losses)
  partial = faithfulness["partial_ablation"]
  adversarial, budget = partial["adversarial"], partial["budget"]
  lost = full["value"] - adversarial["accuracy"]["value"]
  checked += [
    Criterion(
      "its nodes hold the model's values",
      moved <= t["interchange_loss"],
      f"putting those in moves the loss by up to {moved:.3f}",
      f"at most {t['interchange_loss']:g}",
    ),
    Criterion(
      "robust to what is outside it",
      lost <= t["adversarial_accuracy_lost"],
      f"the worst ablation outside it, by {adversarial['by']}, costs"
      f" {lost:.3f} accuracy",
      f"at most {t['adversarial_accuracy_lost']:g} to Frank-Wolfe and to"
      f" {budget['steps']} sign steps of {budget['rate']:g} from"
      f" {len(budget['starts'])} starts",
    ),
  ]
  controls = faithfulness.get("controls")
  for name in ("nonsense", "reinitialised") if controls else ():
    checked.append(_beats_control(controls, name))
  return checked


def _beats_control(controls, name) -> Criterion:
  """The control misses the target, or takes clearly more nodes for it."""
  control, same = controls[name], controls["same"]
  times = THRESHOLDS["control_size_ratio"]
  larger = control["num_nodes"] >= times * same["num_nodes"]
  reached = "reaches" if control["meets_target"] else "misses"
  itself = "takes" if same["meets_target"] else "misses it even with"
  return Criterion(
    f"beats the {name} control",
    # Where the task itself misses, there is nothing to compare with.
    bool(same["meets_target"] and (larger or not control["meets_target"])),
    f"which {reached} the target with {control['num_nodes']} nodes (test"
    f" accuracy {control['test_accuracy']:.3f}); the task itself {itself}"
    f" {same['num_nodes']}",
    f"a miss, or at least {times:g} times the nodes",
  )


def _interval(estimate: Mapping[str, float]) -> str:
  return (
    f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
  )


def verdict(faithfulness: Mapping[str, Any]) -> str:
  """Returns one line: which criteria hold, which fail, at which thresholds."""
  checked = check_criteria(faithfulness)
  held = ", ".join(f"{c.name} ({c.need})" for c in checked if c.holds)
  failed = [f"{c.name} (need {c.need})" for c in checked if not c.holds]
  rest = f"fails: {', '.join(failed)}" if failed else "nothing fails"
  return f"holds: {held or 'nothing'}; {rest}"


def summary(faithfulness: Mapping[str, Any]) -> str:
  """Returns the criteria with what was measured, and the verdict, as text."""
  lines = [
    f"  {_mark(c):<6} {c.name}: {c.measured}; need {c.need}"
    for c in check_criteria(faithfulness)
  ]
  controls = faithfulness.get("controls")
  if controls:
    lines.append(
      "  overlap of nodes with another search's circuit (Jaccard):"
      f" {controls['jaccard_over_seeds']:.2f}"
    )
    backup = controls["backup"]
    can = "can" if backup["meets_target"] else "cannot"
    lines.append(
      f"  without its nodes the model {can} be pruned to the target"
      f" ({backup['num_nodes']} nodes, test loss {backup['test_loss']:.3f})"
    )
  return "\n".join([*lines, f"verdict: {verdict(faithfulness)}"])
