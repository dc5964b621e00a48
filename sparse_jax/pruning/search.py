"""The search: from a model and tasks to the smallest circuits.

Each task has an Optuna study. Round by round its sampler proposes settings,
the runs of all tasks train as batched programs over shared weights (`runs.py`),
each is discretised on validation pairs (`discretise.py`), and the study hears
the size. The best is cleaned up, its edges are masked, and its figures are
measured on test pairs (`findings.py`).
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optuna

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import batched, edge_masks, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.pruning import metrics as metrics_lib
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files, progress

# Candidates are compared on so many pairs; the winner is cut on all of them.
_SEARCH_PAIRS = 64
_SEARCH_TOLERANCE = 0.05
# One more candidate is cut to the target for so many runs of a search.
_RUNS_PER_CUT = 8

_Log = optuna.distributions.FloatDistribution
# What settings are proposed from (paper Table 2, around its centre; rates and
# coefficients reach higher because runs here are shorter).
SPACE: Mapping[str, optuna.distributions.BaseDistribution] = {
  "k_coef": _Log(1e-4, 3e-2, log=True),
  "learning_rate": _Log(3e-3, 1e-1, log=True),
  "warmup_fraction": optuna.distributions.FloatDistribution(0.0, 0.3),
  "beta2": optuna.distributions.FloatDistribution(0.8, 0.99),
  "weight_decay": _Log(1e-4, 1e-1, log=True),
  "temperature": _Log(0.2, 5.0, log=True),
  "init_bias": optuna.distributions.FloatDistribution(0.0, 0.5),
  "init_scale": _Log(1e-3, 1e-1, log=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """A task of the search, with all that its runs need."""

  task: tasks_lib.Task
  splits: sequences_lib.Splits
  means: dict[str, jnp.ndarray]
  study: optuna.Study

  @property
  def length(self) -> int:
    """Tokens of a padded prompt: tasks of one length share programs."""
    return self.splits.train.tokens.shape[1]


def open_storage(
  location: str | os.PathLike | None,
) -> optuna.storages.BaseStorage | str | None:
  """Returns Optuna's storage: in memory, a journal file, or any Optuna URL.

  Raises:
    InputError: if a journal cannot be read or written.
  """
  if location is None or "://" in str(location):
    return None if location is None else str(location)
  path = pathlib.Path(location)
  with files.disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if not os.access(path, os.W_OK):
      raise PermissionError(13, "not writable")
  backend = optuna.storages.journal.JournalFileBackend(
    str(path), optuna.storages.journal.JournalFileOpenLock(str(path))
  )
  try:
    return optuna.storages.JournalStorage(backend)
  except Exception as e:
    raise errors.InputError(
      f"{path}: {type(e).__name__} {e}; need a journal that this search wrote,"
      " or none"
    ) from e


def open_study(
  storage: Any,
  task: tasks_lib.Task,
  depends_on: Mapping[str, str],
  config: config_lib.PruneConfig,
  seed: int,
) -> optuna.Study:
  """Returns the task's study, with the grid's settings waiting if it is new.

  Raises:
    InputError: if a study of this name was made for another model or setting.
  """
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    study = optuna.create_study(
      storage=storage, study_name=task.name, load_if_exists=True
    )
  except Exception as e:
    raise errors.InputError(
      f"study {task.name}: {type(e).__name__} {e}; need a reachable Optuna"
      " storage"
    ) from e
  for key, value in depends_on.items():
    found = study.user_attrs.get(key)
    if found not in (None, value):
      raise errors.InputError(
        f"study {task.name} was made for {key} {found}; need {value}, or"
        " another --workdir or --storage"
      )
    if found is None:
      study.set_user_attr(key, value)
  study.sampler = optuna.samplers.TPESampler(
    seed=seed + len(study.trials), multivariate=True, n_startup_trials=8
  )
  _give_back_lost_trials(study)
  if not study.trials:
    first = config.k_coefs[: config.num_runs]
    for i, k_coef in enumerate(first):
      setting = default_setting(config) | {"k_coef": k_coef}
      enqueue(study, setting, seed + first[:i].count(k_coef))
  return study


def identity(
  model: transformer.Model,
  params: transformer.Params,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  seed: int,
) -> dict[str, str]:
  """Returns what a task's search depends on, by name."""
  settings = config_lib.to_dict(config)
  # What may grow or change without making earlier trials wrong.
  for name in ("num_runs", "num_seeds", "round_size", "curve_targets"):
    settings.pop(name)
  settings["seed"] = seed
  text = json.dumps(settings, sort_keys=True)
  splits = sequences_lib.make_splits(task, config, seed)
  contents = hashlib.sha256()
  for sequences in (splits.train, splits.validation, splits.test):
    for array in map(np.asarray, sequences):
      contents.update(array.tobytes())
  return {
    "task": contents.hexdigest()[:16],
    "model_fingerprint": fingerprint_lib.fingerprint(model, params),
    "prune_settings": hashlib.sha256(text.encode()).hexdigest()[:16],
  }


def default_setting(config: config_lib.PruneConfig) -> dict[str, float]:
  """Returns the config's own setting, moved into `SPACE` where outside it."""
  values = {"k_coef": config.k_coefs[0]}
  values |= {n: getattr(config, n) for n in SPACE if n != "k_coef"}
  return {n: _within(n, value) for n, value in values.items()}


def _within(name: str, value: float) -> float:
  space = SPACE[name]
  return float(min(max(value, space.low), space.high))


def enqueue(study: optuna.Study, setting: Mapping[str, float], seed: int):
  """Makes a setting the next one that `ask` returns."""
  setting = {name: _within(name, value) for name, value in setting.items()}
  study.enqueue_trial(setting, user_attrs={"seed": int(seed)})


def _owner() -> str:
  return f"{socket.gethostname()}:{os.getpid()}"


def _give_back_lost_trials(study: optuna.Study) -> None:
  """Queues again what a process of this machine asked for and died with."""
  running = study.get_trials(
    deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
  )
  for trial in running:
    host, _, pid = trial.user_attrs.get("owner", ":").rpartition(":")
    if host != socket.gethostname() or _is_alive(int(pid or 0)):
      continue
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    enqueue(study, trial.params, trial.user_attrs["seed"])


def _is_alive(pid: int) -> bool:
  if pid == os.getpid():
    return False
  return pathlib.Path(f"/proc/{pid}").exists() if pid else False


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
  return study.get_trials(
    deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
  )


def _taken(study: optuna.Study) -> int:
  """Returns how many runs are finished or under way somewhere."""
  states = optuna.trial.TrialState
  return len(
    study.get_trials(deepcopy=False, states=(states.COMPLETE, states.RUNNING))
  )


def propose(
  study: optuna.Study, config: config_lib.PruneConfig, seed: int, count: int
) -> list[optuna.Trial]:
  """Asks for settings; the last ones repeat the best with other seeds."""
  trials = []
  for _ in range(count):
    number = _taken(study)
    repeats = config.num_runs - config.num_seeds
    if number >= max(repeats, 1) and _finished(study):
      enqueue(study, study.best_trial.params, seed + 1 + number)
    trial = study.ask(fixed_distributions=dict(SPACE))
    if "seed" not in trial.user_attrs:
      trial.set_user_attr("seed", seed)
    trial.set_user_attr("owner", _owner())
    trials.append(trial)
  return trials


def objective(candidate: thresholding.Candidate) -> float:
  """Returns what a study minimises.

  The logarithm of the edges at the target; a miss is worse than every hit, the
  worse the further it misses.
  """
  if candidate.meets_target:
    return float(np.log(max(candidate.num_edges, 1)))
  return 100.0 + candidate.loss


def _setting(trials: Sequence[optuna.Trial]) -> masks_lib.Hyperparameters:
  fields = {
    name: jnp.array([t.params[name] for t in trials], jnp.float32)
    for name in SPACE
  }
  seeds = jnp.array([t.user_attrs["seed"] for t in trials], jnp.int32)
  return masks_lib.Hyperparameters(**fields, seed=seeds)


def find_circuits(
  model: transformer.Model,
  params: transformer.Params,
  tasks: Sequence[tasks_lib.Task],
  config: config_lib.PruneConfig,
  pretrain_means: hooks.SiteArrays,
  seed: int,
  workdir: files.PathLike | None = None,
  storage: str | None = None,
  allowed: Mapping[str, np.ndarray] | None = None,
  on_circuit: Callable[[circuit_lib.Circuit], None] | None = None,
) -> dict[str, circuit_lib.Circuit]:
  """Searches the smallest circuit of every task.

  Args:
    model: the model.
    params: its parameters.
    tasks: the tasks, each learned well enough to be pruned or not.
    config: search, target and numbers of pairs.
    pretrain_means: `prune.mean_activations` over pretraining windows.
    seed: of pairs, masks, batches and proposals.
    workdir: holds the journal, `search.journal`; None keeps it in memory.
    storage: an Optuna URL, or a journal file, in place of the workdir's.
    allowed: per site `[layers, width]` bool, nodes that may be kept.
    on_circuit: called with every circuit as soon as it is whole.

  Returns:
    Circuits by task name. A task whose target no run reaches has its nearest
    miss, with `metrics["meets_target"]` false.

  Raises:
    InputError: if the study was made for another model or other settings.
  """
  check_norms(model, config)
  if storage is None and workdir is not None:
    storage = pathlib.Path(workdir) / "search.journal"
  opened = open_storage(storage)
  problems = []
  for task in tasks:
    splits = sequences_lib.make_splits(task, config, seed)
    means = means_lib.ablation_values(
      model, params, config, pretrain_means, splits.train
    )
    depends_on = identity(model, params, task, config, seed)
    study = open_study(opened, task, depends_on, config, seed)
    problems.append(Problem(task, splits, means, study))
  while any(_taken(p.study) < config.num_runs for p in problems):
    for length in sorted({p.length for p in problems}):
      group = [p for p in problems if p.length == length]
      _search_round(model, params, group, config, seed, allowed)
  found = {}
  for problem in problems:
    circuit = _finish(model, params, problem, config, seed, allowed)
    found[problem.task.name] = circuit
    if on_circuit:
      on_circuit(circuit)
  return found


def check_norms(
  model: transformer.Model, config: config_lib.PruneConfig
) -> None:
  """Checks that the model's norms can be frozen if the config says so.

  Raises:
    InputError: if they cannot.
  """
  can = model.config.norm == "rms" and not model.config.concatenates_positions
  if config.freeze_norms and not can:
    raise errors.bad_value(
      "prune.freeze_norms",
      True,
      "false for models without RMS norms or with concatenated positions",
    )


def find_circuit(
  model: transformer.Model,
  params: transformer.Params,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  pretrain_means: hooks.SiteArrays,
  seed: int,
  allowed: Mapping[str, np.ndarray] | None = None,
) -> circuit_lib.Circuit:
  """Searches one task's smallest circuit; see `find_circuits`."""
  found = find_circuits(
    model, params, [task], config, pretrain_means, seed, allowed=allowed
  )
  return found[task.name]


def _target(config):
  return config.selection_margin * config.target_per_side


def _judge(model, params, problem, config, num_pairs=None):
  sequences = problem.splits.validation
  if num_pairs is not None:
    sequences = sequences_lib.first_pairs(sequences, num_pairs)
  return thresholding.Judge(
    model,
    params,
    problem.means,
    config.shift_answers,
    sequences,
    config.freeze_norms,
  )


def _allowed_order(order, allowed, names):
  if allowed is None:
    return order
  names = masks_lib.in_order(names)
  flat = np.concatenate([np.ravel(allowed[name]) for name in names])
  return order[flat[order]]


def _worth_cutting(trials, config):
  """Returns the best trial, and the next ones that are nearly as small.

  The clean-up may turn their order round; it is cheap beside a long search.
  """
  first, *others = trials
  most = 1.5 * first.user_attrs["num_edges"]
  few = lambda t: (
    t.user_attrs["meets_target"] and t.user_attrs["num_edges"] <= most
  )
  count = max(1, config.num_runs // _RUNS_PER_CUT)
  return [first, *filter(few, others[:count])]


def _over_seeds(trials, trial):
  """Returns the runs of the setting that was repeated most, sorted by edges.

  The given trial's own, where none was repeated.
  """
  groups: dict[tuple, list] = {tuple(trial.params.values()): []}
  for t in trials:
    groups.setdefault(tuple(t.params.values()), []).append(t)
  most = max(groups.values(), key=len)
  return sorted(t.user_attrs["num_edges"] for t in most)


def _search_round(model, params, problems, config, seed, allowed):
  """Proposes, trains, discretises and tells one round of several tasks."""
  asked = [
    (problem, trial)
    for problem in problems
    for trial in propose(
      problem.study,
      config,
      seed,
      min(config.round_size, config.num_runs - _taken(problem.study)),
    )
  ]
  if not asked:
    return
  names = ", ".join(dict.fromkeys(p.task.name for p, _ in asked))
  names = names if len(names) < 40 else f"{len(problems)} tasks"
  states = batched.train_masks(
    model,
    params,
    config,
    _setting([t for _, t in asked]),
    batched.stack([p.means for p, _ in asked]),
    batched.stack([p.splits.train for p, _ in asked]),
    seed,
    f"pruning {names}",
    allowed,
  )
  with progress.progress_bar(len(asked), 0, f"discretising {names}") as bar:
    for i, (problem, trial) in enumerate(asked):
      state = masks_lib.PruneState(*(batched.take(part, i) for part in states))
      order = _allowed_order(masks_lib.node_order(state), allowed, config.sites)
      num_open = sum(int(np.sum(tau >= 0)) for tau in state.tau.values())
      judge = _judge(model, params, problem, config, _SEARCH_PAIRS)
      candidate = thresholding.keep_first(
        judge, order, _target(config), max(1, num_open), _SEARCH_TOLERANCE
      )
      for name, value in (
        ("order", candidate.order.tolist()),
        ("num_nodes", candidate.num_nodes),
        ("num_edges", candidate.num_edges),
        ("validation_loss", candidate.loss),
        ("meets_target", bool(candidate.meets_target)),
      ):
        trial.set_user_attr(name, value)
      problem.study.tell(trial, objective(candidate))
      bar.update()


def _finish(model, params, problem, config, seed, allowed):
  """Returns the task's circuit from its finished trials."""
  task, study, splits = problem.task, problem.study, problem.splits
  trials = sorted(_finished(study), key=lambda t: (t.value, t.number))
  judge = _judge(model, params, problem, config)
  target = _target(config)
  candidates = []
  worth = _worth_cutting(trials, config)
  with progress.progress_bar(len(worth) + 1, 0, f"cutting {task.name}") as bar:
    for trial in worth:
      order = np.asarray(trial.user_attrs["order"], int)
      cut = thresholding.keep_first(
        judge, order, target, trial.user_attrs["num_nodes"]
      )
      cut = dataclasses.replace(cut, run=trial.number)
      candidates.append(
        thresholding.clean_up(
          judge, cut, target, model.config.d_head, splits.train
        )
      )
      bar.update()
    best, steps = min(candidates, key=lambda c: thresholding.rank(c[0]))
    trial = next(t for t in trials if t.number == best.run)
    order = np.asarray(trial.user_attrs["order"], int)
    targets = [t * config.selection_margin for t in config.curve_targets]
    curve, sizes = thresholding.size_curve(judge, order, targets)
    bar.update()
  needed = None
  if config.edge_steps and best.meets_target:
    needed = edge_masks.find_essential(
      judge,
      best,
      splits.train,
      config,
      target,
      seed,
      f"masking edges of {task.name}",
    )
  details = {
    "runs": [
      {
        **t.params,
        "seed": t.user_attrs["seed"],
        "num_nodes": t.user_attrs["num_nodes"],
        "num_edges": t.user_attrs["num_edges"],
        "validation_loss": t.user_attrs["validation_loss"],
        "meets_target": t.user_attrs["meets_target"],
      }
      for t in sorted(trials, key=lambda t: t.number)
    ],
    "clean_up": steps,
    "curve": curve,
    "sizes_at_targets": [
      s | {"target_loss": t}
      for s, t in zip(sizes, config.curve_targets, strict=True)
    ],
    "edges_over_seeds": _over_seeds(trials, trial),
    "identity": identity(model, params, task, config, seed),
  }
  return metrics_lib.measure(
    judge, task, config, splits.test, splits.test_pairs, best, needed, details
  )
