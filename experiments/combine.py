"""How a model's circuits combine: what they share, and what hangs on whom.

  python -m experiments.combine --page=combined.html --out=combine.json
  python -m experiments.combine --model=runs/quickstart/model \\
    --circuits=runs/quickstart/circuits

Nodes and edges that two circuits share, against chance; groups of tasks that
live on the same machinery; and what is left of every task without each circuit,
beside what random circuits of its size leave. Without --model and --circuits,
the shipped model and its circuits.
"""

import itertools
from collections.abc import Mapping, Sequence

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, faithfulness, reference, report
from sparse_jax import circuit as circuit_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.faithfulness import cross_ablation, overlap
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import files, tables

_MODEL = flags.DEFINE_string("model", reference.NAME, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_TASKS = flags.DEFINE_list("tasks", ["all"], cli.TASKS_HELP)
_PAIRS = flags.DEFINE_integer("pairs", 64, "Test pairs of each task.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_PAGE = flags.DEFINE_string("page", None, "The HTML page to write.")

# Accuracy lost beyond what random circuits lose, from which it is named.
_COST = 0.1


def test_prompts(tokenizer) -> dict[str, sequences_lib.Sequences]:
  """Returns test pairs by task, of one length, so that programs are shared."""
  made, _ = tasks_lib.make_tasks(_TASKS.value, tokenizer)
  pairs = {t.name: t.pairs("test", _PAIRS.value, at_most=True) for t in made}
  longest = max(p.prompts.shape[1] for p in pairs.values())
  return {
    name: sequences_lib.task_sequences(p, longest) for name, p in pairs.items()
  }


def shared_text(what: str, found: Sequence[overlap.Shared]) -> str:
  """Returns the table of what two circuits share."""
  rows = [
    (
      f"{s.first}, {s.second}",
      s.count,
      f"{s.expected:.2f}",
      f"{s.p_corrected:.2g}",
    )
    for s in found
  ]
  header = f"shared {what}", "count", "by chance", "p, corrected"
  return tables.text(header, rows)


def matrix_text(matrix: cross_ablation.Matrix) -> str:
  """Returns accuracies and losses, a row a task, a column a circuit."""
  cell = lambda score: f"{score.accuracy:.0%} {score.loss:.2f}"
  columns = [matrix.whole]
  for row in matrix.rows:
    columns += [row.scores, row.random]
  header = ["accuracy, loss", "whole"]
  for row in matrix.rows:
    header += [f"without {row.name}", "random"]
  rows = [
    (task, *map(cell, scores))
    for task, *scores in zip(matrix.tasks, *columns, strict=True)
  ]
  return tables.text(header, rows)


def groups_text(
  groups: Sequence[overlap.Group], circuits: Mapping[str, circuit_lib.Circuit]
) -> str:
  """Returns a line a group of tasks."""
  if not groups:
    return f"no two of {len(circuits)} circuits share more than chance"
  return "\n".join(
    f"on the same machinery: {', '.join(group.names)} ({len(group.nodes)} nodes"
    f" in more than one: {', '.join(group.nodes[:6])}"
    f"{' …' if len(group.nodes) > 6 else ''})"
    for group in groups
  )


def costs_text(costs: Sequence[tuple[str, str, float]]) -> str:
  """Returns a line a circuit: the tasks that hang on it."""
  by_circuit: dict[str, list[str]] = {}
  for name, task, lost in costs:
    by_circuit.setdefault(name, []).append(f"{task} ({lost:.0%})")
  return "\n".join(
    f"hang on {name}, by accuracy lost beyond chance: {', '.join(tasks)}"
    for name, tasks in by_circuit.items()
  )


def main(overrides: list[str]) -> None:
  """Measures, prints and writes."""
  del overrides  # The command has no config.
  directories = reference.find_circuits(_CIRCUITS.value)
  circuits = reference.load_named(directories)
  model, params = checkpoint.load_model(_MODEL.value)
  for circuit in circuits.values():
    faithfulness.check_circuit(model, params, circuit)
  nodes = {name: overlap.nodes(c) for name, c in circuits.items()}
  edges = {name: overlap.edges(c) for name, c in circuits.items()}
  total = {}
  for circuit in circuits.values():
    total |= overlap.num_nodes(circuit)
  # A core lies in the circuit around it, which says nothing of two tasks.
  pairs = [
    (a, b)
    for a, b in itertools.combinations(circuits, 2)
    if circuits[a].task != circuits[b].task
  ]
  shared = overlap.compare(nodes, total, pairs)
  shared_edges = overlap.compare(edges, overlap.num_edges(params), pairs)
  groups = overlap.groups(shared, nodes)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  matrix = cross_ablation.measure(params, circuits, test_prompts(tokenizer))
  print(shared_text("nodes", shared))
  print("\n" + shared_text("edges", shared_edges))
  print("\n" + groups_text(groups, circuits))
  print("\n" + matrix_text(matrix))
  costs = cross_ablation.costs(matrix, _COST)
  print("\n" + costs_text(costs))
  if _OUT.value:
    found = overlap.to_dict(shared, shared_edges, groups)
    found |= {"without": matrix.to_dict(), "costs": costs}
    files.write_json(_OUT.value, found)
  if _PAGE.value:
    each = [circuit_lib.load_all(directory) for directory in directories]
    report.write_page(_PAGE.value, each, without=matrix)
    print(f"page: {_PAGE.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
