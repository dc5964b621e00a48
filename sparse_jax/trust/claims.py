"""The verdict: which claims about a circuit hold, at which thresholds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Losses in nats; intervals are 90% bootstrap intervals over pairs.
THRESHOLDS: Mapping[str, float] = {
  # The circuit reaches its target on test pairs, with this much slack.
  "sufficient_slack": 0.05,
  # Without the circuit the model is near chance: accuracy at most this.
  "necessary_accuracy": 0.75,
  # Without a random circuit it loses at most this much accuracy.
  "specific_accuracy_lost": 0.1,
  # Circuit and model prefer the same answer at least this often.
  "agreement": 0.9,
  "agreement_out_of_template": 0.8,
  # A control may not reach the target with fewer than so many times the nodes.
  "control_size_ratio": 1.5,
  # Swapping in the model's own values moves the loss at most this much.
  "interchange_loss": 0.1,
  # The worst ablation outside the circuit moves accuracy at most this much.
  "adversarial_accuracy_lost": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim: what is said, whether it holds, and the figure behind it."""

  name: str
  holds: bool
  figure: str


def claims(trust: Mapping[str, Any]) -> list[Claim]:
  """Returns every claim that the evidence allows to judge."""
  t = THRESHOLDS
  own = trust["sufficiency_and_necessity"][trust["ablation"]]
  full = trust["sufficiency_and_necessity"]["full_model"]
  loss = own["circuit"]["loss"]
  without = own["without_circuit"]["accuracy"]
  random = own["without_random_circuit"]["accuracy"]
  found = [
    Claim(
      "sufficient",
      loss["low"] <= trust["target_loss"] + t["sufficient_slack"],
      f"test loss {_interval(loss)} against a target of"
      f" {trust['target_loss']:g}",
    ),
    Claim(
      "necessary",
      without["value"] <= t["necessary_accuracy"],
      f"accuracy without it {_interval(without)}",
    ),
    Claim(
      "specific",
      full["accuracy"]["value"] - random["value"]
      <= t["specific_accuracy_lost"],
      f"accuracy without random circuits of its size {_interval(random)}, of"
      f" the full model {full['accuracy']['value']:.3f}",
    ),
  ]
  for name, scored in trust["agreement"].items():
    least = t["agreement"] if name == "test" else t["agreement_out_of_template"]
    share = scored["agreement"]
    found.append(
      Claim(
        f"agrees with the model on {name} prompts",
        share["value"] >= least,
        f"same answer on {_interval(share)} of {scored['num_prompts']}",
      )
    )
  curve = trust["interchange"]["curve"]
  moved = max(
    abs(p["loss"]["value"] - curve[0]["loss"]["value"]) for p in curve
  )
  found.append(
    Claim(
      "its nodes hold the model's values",
      moved <= t["interchange_loss"],
      f"putting those in moves the loss by up to {moved:.3f}",
    )
  )
  lost = (
    full["accuracy"]["value"]
    - trust["partial_ablation"]["adversarial"]["accuracy"]["value"]
  )
  found.append(
    Claim(
      "robust to what is outside it",
      lost <= t["adversarial_accuracy_lost"],
      f"the worst ablation outside it costs {lost:.3f} accuracy",
    )
  )
  controls = trust.get("controls")
  for name in ("nonsense", "reinitialised") if controls else ():
    found.append(_control(controls, name))
  return found


def _control(controls, name) -> Claim:
  control, same = controls[name], controls["same"]
  least = THRESHOLDS["control_size_ratio"] * same["num_nodes"]
  larger = not control["meets_target"] or control["num_nodes"] >= least
  # A control that passes on validation pairs only has not solved the test ones.
  fails = control["test_accuracy"] <= THRESHOLDS["necessary_accuracy"]
  reached = "reaches" if control["meets_target"] else "misses"
  return Claim(
    f"beats the {name} control",
    bool(larger or fails),
    f"which {reached} the target with {control['num_nodes']} nodes (test"
    f" accuracy {control['test_accuracy']:.3f}); the task itself takes"
    f" {same['num_nodes']}",
  )


def _interval(estimate: Mapping[str, float]) -> str:
  return (
    f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
  )


def verdict(trust: Mapping[str, Any]) -> str:
  """Returns one line: which claims hold and which fail."""
  found = claims(trust)
  failed = [c.name for c in found if not c.holds]
  held = [c.name for c in found if c.holds]
  text = "holds: " + (", ".join(held) or "nothing")
  if failed:
    return text + "; fails: " + ", ".join(failed)
  return text + "; nothing fails"


def summary(trust: Mapping[str, Any]) -> str:
  """Returns the claims with their figures, and the verdict, as text."""
  lines = [
    f"  {'holds' if c.holds else 'FAILS':<6} {c.name}: {c.figure}"
    for c in claims(trust)
  ]
  controls = trust.get("controls")
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
  return "\n".join([*lines, f"verdict: {verdict(trust)}"])
