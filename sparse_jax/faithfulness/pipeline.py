"""From tasks to saved circuits: learned, searched, measured, and kept.

What is finished in a directory is loaded from there, not made again.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_jax import checkpoint
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import faithfulness as faithfulness_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import hooks, sharding, transformer
from sparse_jax.pruning import search
from sparse_jax.tasks import evaluation, mask_evaluator, real_code
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files


def prune(
  model_directory: files.PathLike,
  task: str,
  workdir: files.PathLike,
  *,
  unlearned: bool = False,
  evidence: bool = True,
  **settings: Any,
) -> search.Found:
  """Returns a task's core and the robust circuit around it, as searched.

  The same call again loads what it has found. Neither real code nor controls
  are looked at; `experiments.prune` and `experiments.verify` do.

  Args:
    model_directory: of the model, or "reference".
    task: one of `tasks.TASK_NAMES`, or the path of a file of the user's own.
    workdir: where the circuits are saved, in a directory of the task's name.
    unlearned: whether to prune a task that the model has not learned.
    evidence: whether to measure whether they are what the model computes, for
      `evidence` to show: minutes.
    **settings: fields of `PruneConfig`, such as `steps=100`; the others are
      those of the model's own run.

  Raises:
    InputError: if the model has not learned the task, or an argument is bad.
  """
  trained = checkpoint.load_run(model_directory) or config_lib.Config()
  known = [field.name for field in dataclasses.fields(config_lib.PruneConfig)]
  for name in settings:
    if name not in known:
      raise errors.unknown_name("setting", name, known)
  config = dataclasses.replace(
    trained, prune=dataclasses.replace(trained.prune, **settings)
  )
  model, params = checkpoint.load_model(
    model_directory, config.prune.model_parallel
  )
  tokenizer = checkpoint.load_tokenizer(model_directory)
  made = tasks_lib.make_task(task, tokenizer)
  pipe = Pipeline(
    model=model,
    params=params,
    means=checkpoint.load_means(model_directory),
    config=config,
    faithfulness=evidence,
    controls=False,
    natural=False,
  )
  learned, reasons = pipe.choose([made], [made.name] if unlearned else ())
  for name, reason in reasons.items():
    raise errors.InputError(f"{name}: not pruned, {reason}")
  workdir = pathlib.Path(workdir)
  with files.exclusive(workdir):
    return pipe.run(learned, workdir)[made.name]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
  """Makes the circuits of one model.

  Attributes:
    means: the pretraining means of the model directory.
    config: its `prune` and `seed` direct the search, its `data` says where real
      prompts are looked for.
    faithfulness: whether circuits get `metrics["faithfulness"]`: minutes each.
    controls: whether that includes four more prunings.
    natural: whether the files of the config's `data` may be read: for code
      around prompts while pruning, and for held-out prompts afterwards.
  """

  model: transformer.Model
  params: transformer.Params
  means: hooks.SiteArrays
  config: config_lib.Config
  faithfulness: bool = True
  controls: bool = True
  natural: bool = True

  def __post_init__(self):
    spread = sharding.spread(self.params, self.config.prune.model_parallel)
    object.__setattr__(self, "params", spread)

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
    prune, seed = self.config.prune, self.config.seed
    chosen, skipped = {}, {}
    for task in tasks:
      try:
        sequences_lib.make_splits(task, prune, seed)
        check = evaluation.check_learned(
          self._difference_of_whole_model, task, prune, seed
        )
      except errors.InputError as e:
        skipped[task.name] = str(e)
        continue
      if check.learned or task.name in not_learned_too:
        chosen[task] = check.learned
      else:
        skipped[task.name] = "not learned: " + "; ".join(check.reasons)
    return chosen, skipped

  def _difference_of_whole_model(self, sequences):
    """Returns logit differences `[S]`, by the programs that circuits need."""
    shape = self.model.config.site_shape
    # With all gates open nobody looks at them; only their shapes count.
    names = self.config.prune.sites
    means = {name: np.zeros(shape(name), np.float32) for name in names}
    whole = self.model, self.params, means
    evaluator = mask_evaluator.on_mesh(*whole, sequences)
    return evaluator.logit_difference(evaluator.constant(1))

  def run(
    self,
    learned: Mapping[tasks_lib.Task, bool],
    directory: pathlib.Path,
    storage: str | os.PathLike | None = None,
  ) -> dict[str, search.Found]:
    """Returns the circuits of every task, saved in `directory / task.name`.

    Args:
      learned: as `choose` returns them.
      directory: holds a directory for every task's circuits.
      storage: of the search; see `search.open_storage`.

    Raises:
      InputError: if an earlier search in the storage was another one.
    """
    if not learned:
      return {}
    code = self._real_code(list(learned))
    prune = self.config.prune
    tasks = {t.name: real_code.surround(t, code, prune) for t in learned}
    plain = {task.name: task for task in learned}
    found = {name: self._load(directory, t) for name, t in tasks.items()}

    def finish(circuits: search.Found) -> None:
      name = circuits.core.task
      self._add_metrics(circuits, plain[name], code)
      for circuit in filter(None, circuits):
        circuit.metrics["learned"] = learned[plain[name]]
        # Of every measure: `verify` takes its pairs as these say.
        circuit.details["settings"] = {
          "prune": config_lib.to_dict(prune),
          "seed": self.config.seed,
        }
      circuits.core.save(directory / name, robust=circuits.robust)
      found[name] = circuits

    for circuits in filter(None, list(found.values())):
      if self.faithfulness and not self._is_measured(circuits):
        finish(circuits)
    todo = [task for name, task in tasks.items() if found[name] is None]
    if todo:
      search.find_circuits(
        self.model,
        self.params,
        todo,
        prune,
        self.means,
        self.config.seed,
        storage=storage,
        on_found=finish,
      )
    return found

  def _real_code(self, tasks: Sequence[tasks_lib.Task]) -> real_code.RealCode:
    prune = self.config.prune
    if not self.natural or not (prune.behind_code or prune.real_prompts):
      return real_code.RealCode()
    return real_code.collect(tasks, self.config)

  def _load(
    self, directory: pathlib.Path, task: tasks_lib.Task
  ) -> search.Found | None:
    """Returns the circuits that an equal search has left, if there are any."""
    prune, where = self.config.prune, directory / task.name
    stages = {"core": prune.core}
    if prune.ablation_outside != "plain":
      stages["robust"] = prune.robust
    circuits = {}
    try:
      for which, config in stages.items():
        circuit = circuit_lib.Circuit.load(where, which)
        details = circuit.details
        targets = [s["target_loss"] for s in details["sizes_at_targets"]]
        is_same = (
          len(details["runs"]) >= config.num_runs
          and targets == list(config.curve_targets)
          and details["identity"]
          == search.identity(
            self.model, self.params, task, config, self.config.seed
          )
        )
        if not is_same:
          return None
        circuits[which] = circuit
    except (errors.InputError, KeyError, TypeError):
      return None  # There is none, or an earlier version has left it.
    return search.Found(circuits["core"], circuits.get("robust"))

  def _is_measured(self, found: search.Found) -> bool:
    key = "controls" if self.controls else "verdict"
    return all(
      key in (circuit.metrics.get("faithfulness") or {})
      for circuit in filter(None, found)
    )

  def _add_metrics(
    self,
    found: search.Found,
    task: tasks_lib.Task,
    code: real_code.RealCode,
  ) -> None:
    if not self.faithfulness:
      return
    natural = None
    if self.natural:
      natural = sequences_lib.natural_prompts(task, self.config)
    circuits = {k: c for k, c in found._asdict().items() if c is not None}
    measured = faithfulness_lib.measure_all(
      self.model,
      self.params,
      circuits,
      task,
      faithfulness_lib.FaithfulnessOptions(
        self.config.prune,
        self.means,
        self.config.seed,
        natural,
        code,
        with_controls=self.controls,
      ),
    )
    for name, circuit in circuits.items():
      circuit.metrics["faithfulness"] = measured[name]
