"""The verdict: which claims about a circuit hold, at which thresholds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Losses in nats; intervals are 90% bootstrap intervals over pairs.
THRESHOLDS: Mapping[str, float] = {
  # Its test loss is at most so many times the target it was cut to.
  "sufficient_over_target": 1.0,
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
  # The worst ablation outside the circuit costs at most this much accuracy.
  "adversarial_accuracy_lost": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim about a circuit.

  Attributes:
    name: what is said.
    holds: whether it is so.
    figure: what was measured.
    need: what would have made it hold.
  """

  name: str
  holds: bool
  figure: str
  need: str


def claims(trust: Mapping[str, Any]) -> list[Claim]:
  """Returns every claim that the evidence allows to judge."""
  t = THRESHOLDS
  own = trust["sufficiency_and_necessity"][trust["ablation"]]
  full = trust["sufficiency_and_necessity"]["full_model"]
  loss = own["circuit"]["loss"]
  most = t["sufficient_over_target"] * trust["target_loss"]
  without = own["without_circuit"]["accuracy"]
  random = own["without_random_circuit"]["accuracy"]
  found = [
    Claim(
      "sufficient",
      loss["value"] <= most,
      f"test loss {_interval(loss)}",
      f"at most {most:g}, its target",
    ),
    Claim(
      "necessary",
      without["value"] <= t["necessary_accuracy"],
      f"accuracy without it {_interval(without)}",
      f"at most {t['necessary_accuracy']:g}",
    ),
    Claim(
      "specific",
      full["accuracy"]["value"] - random["value"]
      <= t["specific_accuracy_lost"],
      f"accuracy without random circuits of its size {_interval(random)}, of"
      f" the full model {full['accuracy']['value']:.3f}",
      f"at most {t['specific_accuracy_lost']:g} lost",
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
        f"at least {least:g}",
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
      f"at most {t['interchange_loss']:g}",
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
      f"the ablation outside it that raises the loss most costs {lost:.3f}"
      " accuracy",
      f"at most {t['adversarial_accuracy_lost']:g}",
    )
  )
  controls = trust.get("controls")
  for name in ("nonsense", "reinitialised") if controls else ():
    found.append(_control(controls, name))
  return found


def _control(controls, name) -> Claim:
  """The control misses the target, or takes clearly more nodes for it."""
  control, same = controls[name], controls["same"]
  times = THRESHOLDS["control_size_ratio"]
  larger = control["num_nodes"] >= times * same["num_nodes"]
  reached = "reaches" if control["meets_target"] else "misses"
  itself = "takes" if same["meets_target"] else "misses it even with"
  return Claim(
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


def verdict(trust: Mapping[str, Any]) -> str:
  """Returns one line: which claims hold, which fail, at which thresholds."""
  found = claims(trust)
  failed = [f"{c.name} (need {c.need})" for c in found if not c.holds]
  held = [f"{c.name} ({c.need})" for c in found if c.holds]
  text = "holds: " + (", ".join(held) or "nothing")
  if failed:
    return text + "; fails: " + ", ".join(failed)
  return text + "; nothing fails"


def summary(trust: Mapping[str, Any]) -> str:
  """Returns the claims with their figures, and the verdict, as text."""
  lines = [
    f"  {'holds' if c.holds else 'FAILS':<6} {c.name}: {c.figure};"
    f" need {c.need}"
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
