"""What ablating one circuit does to every task: a matrix."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.faithfulness import sufficiency
from sparse_jax.model import transformer
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import progress

_NUM_RANDOM = 2


class Score(NamedTuple):
  """A model on one task."""

  loss: float  # The task loss, in nats.
  accuracy: float


class Row(NamedTuple):
  """One circuit, ablated."""

  name: str
  scores: tuple[Score, ...]  # Of the tasks, without the circuit.
  random: tuple[Score, ...]  # Without random circuits of its size, the mean.


class Matrix(NamedTuple):
  """What is left of tasks, the columns, without circuits, the rows."""

  tasks: tuple[str, ...]
  whole: tuple[Score, ...]  # Of the whole model.
  rows: tuple[Row, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, fit for JSON."""
    plain = lambda scores: [score._asdict() for score in scores]
    return {
      "tasks": list(self.tasks),
      "whole": plain(self.whole),
      "without": {
        row.name: {"scores": plain(row.scores), "random": plain(row.random)}
        for row in self.rows
      },
    }


def measure(
  params: transformer.Params,
  circuits: Mapping[str, circuit_lib.Circuit],
  tasks: Mapping[str, sequences_lib.Sequences],
  seed: int = 0,
) -> Matrix:
  """Returns the scores of tasks with and without each circuit.

  Args:
    params: of the model that the circuits were cut from.
    circuits: by name; each takes its own ablation values when it is closed.
    tasks: prompts by the task's name; equal shapes share a program.
    seed: of the random circuits.
  """
  rows = []
  with progress.progress_bar(
    len(circuits) * len(tasks), 0, "circuits without, by task"
  ) as bar:
    for name, circuit in circuits.items():
      random = [
        sufficiency.random_mask(circuit.node_mask, seed + i)
        for i in range(_NUM_RANDOM)
      ]
      found = []
      for sequences in tasks.values():
        on = circuit.evaluator(params, sequences)
        own, *others = (
          _score(on.logit_difference({n: ~m for n, m in kept.items()}))
          for kept in (circuit.node_mask, *random)
        )
        found.append((own, Score(*np.mean(others, 0).tolist())))
        bar.update()
      rows.append(Row(name, *zip(*found, strict=True)))
  on = next(iter(circuits.values())).evaluator(params, None)
  whole = tuple(
    _score(on.on(sequences).logit_difference(on.constant(1)))
    for sequences in tasks.values()
  )
  return Matrix(tuple(tasks), whole, tuple(rows))


def _score(diff_S: np.ndarray) -> Score:
  loss = float(np.mean(np.logaddexp(0, -diff_S.astype(np.float64))))
  return Score(loss, float(np.mean(diff_S > 0)))


def costs(matrix: Matrix, least: float) -> Sequence[tuple[str, str, float]]:
  """Returns (circuit, task, accuracy lost), the largest loss first.

  What random circuits of its size lose is taken off; `least` is the least.
  """
  found = [
    (row.name, task, without.accuracy - own.accuracy)
    for row in matrix.rows
    for task, own, without in zip(
      matrix.tasks, row.scores, row.random, strict=True
    )
  ]
  return sorted((c for c in found if c[2] >= least), key=lambda c: -c[2])
