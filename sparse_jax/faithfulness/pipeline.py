"""From tasks to saved circuits: learned, searched, measured, and kept.

What is finished in a directory is loaded from there, not made again.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import faithfulness as faithfulness_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import search
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
  """Makes the circuits of one model.

  Attributes:
    means: the pretraining means of the model directory.
    config: its `prune` and `seed` direct the search, its `data` says where real
      prompts are looked for.
    faithfulness: whether circuits get `metrics["faithfulness"]`: minutes each.
    controls: whether that includes four more prunings.
    natural: whether that includes prompts of held-out real files.
  """

  model: transformer.Model
  params: transformer.Params
  means: hooks.SiteArrays
  config: config_lib.Config
  faithfulness: bool = True
  controls: bool = True
  natural: bool = True

  def choose(
    self,
    tasks: Sequence[tasks_lib.Task],
    not_learned_too: Collection[str] = (),
  ) -> tuple[dict[tasks_lib.Task, bool], dict[str, str]]:
    """Returns which tasks to prune, and why the others are skipped, by name.

    Args:
      tasks: candidates. One that lacks pairs is skipped like one that the model
        has not learned.
      not_learned_too: names of tasks to prune in any case.

    Returns:
      For every task to prune whether the model has learned it, and reasons.
    """
    diffs = evaluation.make_difference_function(self.model, self.params)
    prune, seed = self.config.prune, self.config.seed
    chosen, skipped = {}, {}
    for task in tasks:
      try:
        sequences_lib.make_splits(task, prune, seed)
        check = evaluation.check_learned(diffs, task, prune, seed)
      except errors.InputError as e:
        skipped[task.name] = str(e)
        continue
      if check.learned or task.name in not_learned_too:
        chosen[task] = check.learned
      else:
        skipped[task.name] = "not learned: " + "; ".join(check.reasons)
    return chosen, skipped

  def run(
    self,
    learned: Mapping[tasks_lib.Task, bool],
    directory: pathlib.Path,
    journal: pathlib.Path | None = None,
    storage: str | None = None,
  ) -> dict[str, circuit_lib.Circuit]:
    """Returns a circuit for every task, saved in `directory / task.name`.

    Args:
      learned: as `choose` returns them.
      directory: holds a directory for every circuit.
      journal: directory of the search's journal; None keeps it in memory.
      storage: an Optuna URL, or a journal file, in place of that.

    Raises:
      InputError: if an earlier search in the journal was another one.
    """
    tasks = {task.name: task for task in learned}
    circuits = {name: self._load(directory, t) for name, t in tasks.items()}

    def finish(circuit: circuit_lib.Circuit) -> None:
      task = tasks[circuit.task]
      circuit.metrics["learned"] = learned[task]
      if self.faithfulness:
        circuit.metrics["faithfulness"] = self._measure(circuit, task)
      circuit.save(directory / task.name)
      circuits[task.name] = circuit

    for circuit in filter(None, list(circuits.values())):
      if self.faithfulness and not self._is_measured(circuit):
        finish(circuit)
    todo = [task for task in learned if circuits[task.name] is None]
    if todo:
      search.find_circuits(
        self.model,
        self.params,
        todo,
        self.config.prune,
        self.means,
        self.config.seed,
        workdir=journal,
        storage=storage,
        on_circuit=finish,
      )
    return circuits

  def _load(
    self, directory: pathlib.Path, task: tasks_lib.Task
  ) -> circuit_lib.Circuit | None:
    """Returns the circuit that an equal search has left, if there is one."""
    prune = self.config.prune
    try:
      circuit = circuit_lib.Circuit.load(directory / task.name)
      details = circuit.details
      targets = [s["target_loss"] for s in details["sizes_at_targets"]]
      is_same = (
        len(details["runs"]) >= prune.num_runs
        and targets == list(prune.curve_targets)
        and details["identity"]
        == search.identity(
          self.model, self.params, task, prune, self.config.seed
        )
      )
    except (errors.InputError, KeyError, TypeError):
      return None  # There is none, or an earlier version has left it.
    return circuit if is_same else None

  def _is_measured(self, circuit: circuit_lib.Circuit) -> bool:
    stored = circuit.metrics.get("faithfulness") or {}
    return "controls" in stored if self.controls else bool(stored)

  def _measure(
    self, circuit: circuit_lib.Circuit, task: tasks_lib.Task
  ) -> dict[str, Any]:
    natural = None
    if self.natural:
      natural = sequences_lib.natural_prompts(task, self.config)
    return faithfulness_lib.measure_faithfulness(
      self.model,
      self.params,
      circuit,
      task,
      faithfulness_lib.FaithfulnessOptions(
        self.config.prune,
        self.means,
        self.config.seed,
        natural,
        with_controls=self.controls,
      ),
    )
