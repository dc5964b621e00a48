"""A table of a model's circuits and what their evidence says, in Markdown."""

from collections.abc import Iterable, Mapping

from sparse_jax.circuit import Circuit
from sparse_jax.faithfulness import criteria
from sparse_jax.utils import tables

_HEADER = (
  "task",
  "model",
  "circuit",
  "nodes",
  "edges",
  "test loss",
  "accuracy",
  "lost to the worst adversary",
  "claims",
  "fails",
)


def table(circuits: Iterable[Mapping[str, Circuit]]) -> str:
  """Returns a row a circuit, the core of a task before its robust circuit.

  Losses in nats, accuracies in percent; "lost" is accuracy.
  """
  rows = []
  for parts in circuits:
    rows += [_row(which, circuit) for which, circuit in parts.items()]
  return tables.markdown(_HEADER, rows)


def _row(which: str, circuit: Circuit) -> tuple:
  m = circuit.metrics
  is_core = which == "core"
  full = m["full_model_test_loss"], m["full_model_test_accuracy"]
  return (
    f"`{circuit.task}`" if is_core else "",
    _score(*full) if is_core else "",
    which,
    m["num_nodes"],
    f"{m['num_edges']:,}",
    f"{m['test_loss']:.3f}",
    f"{m['test_accuracy']:.1%}",
    *_claims(circuit),
  )


def _score(loss: float, accuracy: float) -> str:
  return f"{loss:.3f}, {accuracy:.1%}"


def _claims(circuit: Circuit) -> tuple:
  faithfulness = circuit.metrics.get("faithfulness")
  if not faithfulness:
    return None, None, None
  evidence = criteria.evidence(circuit)
  scores = faithfulness["sufficiency_and_necessity"]
  attacked = faithfulness["partial_ablation"]["adversarial"]["accuracy"]
  lost = scores["full_model"]["accuracy"]["value"] - attacked["value"]
  fails = "; ".join(evidence.failed) or "nothing"
  return f"{lost:.2f}", evidence.num_held, fails
