"""The search: from a model and tasks to the smallest circuits.

A task has two circuits, one inside the other. The robust one is the smallest
seen to do the task whatever is left on outside it; the core is the smallest
inside that which does it with all else at its mean, as the paper's.

Each has an Optuna study. Round by round its sampler proposes hyperparameters,
the runs of all tasks train as batched programs over shared weights
(`batched.py`), each mask is held against the target (`target.py`,
`thresholding.py`), and the study is told the size. The best is cleaned up, its
edges are masked (`edge_masks.py`), and its metrics are measured on test pairs
(`metrics.py`).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import fingerprint, hooks, transformer
from sparse_jax.pruning import batched, edge_masks, masks, metrics, thresholding
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, files, progress

# Candidates are compared on so many pairs; the winner is cut on all of them.
_SEARCH_PAIRS = 64
_SEARCH_TOLERANCE = 0.05
# One more candidate is cut to the target for so many runs of a search.
_RUNS_PER_CUT = 8
# Far more than a process takes from asking for a trial to signing it.
_SIGNING_SECONDS = 3.0
_TRIAL_METRICS = (
  "num_nodes",
  "num_edges",
  "validation_loss",
  "validation_accuracy_lost",
  "meets_target",
)

_Log = optuna.distributions.FloatDistribution
# What hyperparameters are proposed from (paper Table 2, around its centre;
# rates and coefficients reach higher because runs here are shorter).
SPACE: Mapping[str, optuna.distributions.BaseDistribution] = {
  "k_coef": _Log(1e-5, 3e-2, log=True),
  "learning_rate": _Log(3e-3, 1e-1, log=True),
  "warmup_fraction": optuna.distributions.FloatDistribution(0.0, 0.3),
  "beta2": optuna.distributions.FloatDistribution(0.8, 0.99),
  "weight_decay": _Log(1e-4, 1e-1, log=True),
  "temperature": _Log(0.2, 5.0, log=True),
  "init_bias": optuna.distributions.FloatDistribution(0.0, 0.5),
  "init_scale": _Log(1e-3, 1e-1, log=True),
}


class Found(NamedTuple):
  """A task's circuits; the core lies inside the robust one.

  `robust` is None where `prune.ablation_outside` is plain.
  """

  core: circuit_lib.Circuit
  robust: circuit_lib.Circuit | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
  """A task at one stage of the search, with all that its runs need.

  Attributes:
    task: the task.
    splits: its pairs.
    target: what its circuit has to reach.
    allowed: nodes that it may keep, per site `[layers, width]` bool.
    study: of the task and stage.
    identity: what the study's trials depend on.
  """

  task: tasks_lib.Task
  splits: sequences_lib.Splits
  target: target_lib.Target
  allowed: dict[str, np.ndarray]
  study: optuna.Study
  identity: dict[str, str]

  @property
  def shape(self) -> tuple[int, int]:
    """Training prompts and their length: tasks of one shape train together."""
    return self.splits.train.tokens.shape


class _Winner(NamedTuple):
  """A stage's circuit, and what circuit.json says of how it was found."""

  candidate: thresholding.Candidate
  details: dict[str, Any]


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
  lock = optuna.storages.journal.JournalFileOpenLock(str(path))
  backend = optuna.storages.journal.JournalFileBackend(str(path), lock)
  _cut_torn_line(path, lock)
  try:
    return optuna.storages.JournalStorage(backend)
  except Exception as e:
    raise errors.InputError(
      f"{path}: {type(e).__name__} {e}; need a journal that this search wrote,"
      " or none"
    ) from e


def _cut_torn_line(path: pathlib.Path, lock) -> None:
  """Cuts off what a process that died while writing left of its last line.

  The next line would be appended to it, and the journal not read again.
  """
  lock.acquire()
  try:
    with files.disk_errors(path), open(path, "r+b") as file:
      raw, start = file.read(), b'{"op_code"'
      # Whatever else was named as a journal stays as it is.
      if raw[: len(start)] != start[: len(raw)]:
        raise errors.InputError(
          f"{path}: starts with {raw[:20]!r}; need a journal that this search"
          " wrote, or none"
        )
      if not raw.endswith(b"\n"):
        file.truncate(raw.rfind(b"\n") + 1)
  finally:
    lock.release()


def open_study(
  storage: Any,
  name: str,
  identity: Mapping[str, str],
  config: config_lib.PruneConfig,
  seed: int,
) -> optuna.Study:
  """Returns the study of that name, with the grid's runs waiting if it is new.

  Raises:
    InputError: if a study of this name was made for something else.
  """
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    study = optuna.create_study(
      storage=storage, study_name=name, load_if_exists=True
    )
  except Exception as e:
    raise errors.InputError(
      f"study {name}: {type(e).__name__} {e}; need a reachable Optuna storage"
    ) from e
  if not study.trials and "identity" not in study.user_attrs:
    study.set_user_attr("identity", dict(identity))
  own = study.user_attrs.get("identity", {})
  for key, value in identity.items():
    if own.get(key) == value:
      continue
    what = f"was made for {key} {own.get(key)}; need {value}, or"
    if key == "task_pairs":
      what = f"belongs to another task, of {key} {own.get(key)}; need"
    raise errors.InputError(
      f"study {name} {what} another --workdir or --storage"
    )
  study.sampler = optuna.samplers.TPESampler(
    seed=seed + len(study.trials), multivariate=True, n_startup_trials=8
  )
  _give_back_lost_trials(study)
  first = config.k_coefs[: config.num_runs]
  for i, k_coef in enumerate(first):
    values = default_hyperparameters(config) | {"k_coef": k_coef}
    enqueue(study, values, seed + first[:i].count(k_coef))
  return study


def identity(
  model: transformer.Model,
  params: transformer.Params,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  seed: int,
) -> dict[str, str]:
  """Returns hashes of what a study's trials and its circuit depend on.

  `details["identity"]` of a circuit that the search made is equal to it.
  """
  pairs = sequences_lib.split_pairs(task, config, seed)
  return _identity(fingerprint.fingerprint(model, params), pairs, config, seed)


def _identity(model_fingerprint, pairs, config, seed) -> dict[str, str]:
  fields = config_lib.to_dict(config)
  # What may grow or change without invalidating earlier trials.
  for name in (
    "num_runs",
    "num_robust_runs",
    "num_seeds",
    "round_size",
    "curve_targets",
    "model_parallel",
  ):
    fields.pop(name)
  fields["seed"] = seed
  text = json.dumps(fields, sort_keys=True)
  digest = hashlib.sha256()
  for split, some in pairs.items():
    digest.update(f"{split} {len(some)}".encode())
    for array in some.sequences():
      digest.update(np.ascontiguousarray(array, np.int32).tobytes())
  return {
    "model_fingerprint": model_fingerprint,
    "prune_config": hashlib.sha256(text.encode()).hexdigest()[:16],
    "task_pairs": digest.hexdigest()[:16],
  }


def default_hyperparameters(config: config_lib.PruneConfig) -> dict[str, float]:
  """Returns the config's own values, moved into `SPACE` where outside it."""
  values = {"k_coef": config.k_coefs[0]}
  values |= {n: getattr(config, n) for n in SPACE if n != "k_coef"}
  return {n: _within(n, value) for n, value in values.items()}


def _within(name: str, value: float) -> float:
  space = SPACE[name]
  return float(min(max(value, space.low), space.high))


def enqueue(
  study: optuna.Study,
  values: Mapping[str, float],
  seed: int,
  instead_of: int | None = None,
) -> None:
  """Makes `ask` return these hyperparameters, once: not if they are known.

  Known are those that wait, run or have finished, but for the trial that they
  are queued `instead_of`. So a process that died anywhere between here and
  there leaves nothing to be run twice.
  """
  values = {name: _within(name, value) for name, value in values.items()}
  others = (t for t in _not_failed(study) if t.number != instead_of)
  if (values, int(seed)) not in map(_key, others):
    study.enqueue_trial(values, user_attrs={"seed": int(seed)})


def _key(trial: optuna.trial.FrozenTrial):
  """Returns what a run of a trial depends on."""
  values = trial.system_attrs.get("fixed_params") or trial.params
  return values, trial.user_attrs.get("seed")


def _not_failed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
  states = optuna.trial.TrialState
  some = (states.WAITING, states.RUNNING, states.COMPLETE)
  return study.get_trials(deepcopy=False, states=some)


def _running(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
  states = (optuna.trial.TrialState.RUNNING,)
  return study.get_trials(deepcopy=False, states=states)


def _owner(pid: int | None = None) -> str:
  """Returns a process's name, which no later one of its number has."""
  pid = os.getpid() if pid is None else pid
  started = ""
  with contextlib.suppress(OSError):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    started = fields.split()[19]
  return f"{socket.gethostname()}:{pid}:{started}"


def _give_back_lost_trials(study: optuna.Study) -> None:
  """Queues again what a process of this machine asked for and died with."""
  deadline = time.monotonic() + _SIGNING_SECONDS
  unsigned = lambda: [t for t in _running(study) if not _is_signed(t)]
  while unsigned() and time.monotonic() < deadline:
    time.sleep(0.1)
  for trial in unsigned():
    # Its process died before it had all hyperparameters: the next replaces it.
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
  for trial in _running(study):
    owner = trial.user_attrs["owner"]
    host, _, process = owner.partition(":")
    pid = int(process.partition(":")[0])
    is_mine = pid == os.getpid()
    is_alive = owner == _owner(pid) and not is_mine
    if host != socket.gethostname() or is_alive:
      continue
    # In this order: whoever dies in between leaves it to the next.
    enqueue(study, trial.params, trial.user_attrs["seed"], trial.number)
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _is_signed(trial: optuna.trial.FrozenTrial) -> bool:
  return "owner" in trial.user_attrs


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
  """Asks for trials; the last ones repeat the best with other seeds."""
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
  return 100.0 + candidate.share


def _hyperparameters(config, trials) -> masks.Hyperparameters:
  values = {
    name: np.array([t.params[name] for t in trials], np.float32)
    for name in SPACE
  }
  seeds = np.array([t.user_attrs["seed"] for t in trials])
  return masks.Hyperparameters.from_config(config, seed=seeds, **values)


def find_circuits(
  model: transformer.Model,
  params: transformer.Params,
  tasks: Sequence[tasks_lib.Task],
  config: config_lib.PruneConfig,
  pretrain_means: hooks.SiteArrays,
  seed: int,
  *,
  storage: str | os.PathLike | None = None,
  allowed: Mapping[str, np.ndarray] | None = None,
  on_found: Callable[[Found], None] | None = None,
) -> dict[str, Found]:
  """Searches the smallest circuits of every task.

  Args:
    model: the frozen model.
    params: the model's.
    tasks: the tasks, each learned well enough to be pruned or not.
    config: search, target and numbers of pairs.
    pretrain_means: `means.mean_activations` over pretraining windows.
    seed: of pairs, masks, batches and proposals.
    storage: as `open_storage` takes it.
    allowed: per site `[layers, width]` bool, nodes that may be kept.
    on_found: called with a task's circuits as soon as they are whole.

  Returns:
    Circuits by task name. A task whose target no run reaches has its nearest
    miss, with `metrics["meets_target"]` false.

  Raises:
    InputError: if a study was made for another model, task or config, or a task
      has too few pairs (`sequences.TooFewPairs`; `evaluation.check_learned`
      raises the same, task by task).
  """
  check_norms(model, config)
  opened = open_storage(storage)
  model_fingerprint = fingerprint.fingerprint(model, params)
  evaluators, splits = {}, {}
  for task in tasks:
    splits[task.name] = sequences_lib.make_splits(task, config, seed)
    means = means_lib.ablation_values(
      model, params, config, pretrain_means, splits[task.name].train
    )
    evaluators[task.name] = mask_evaluator.on_mesh(
      model, params, means, splits[task.name].validation, config.freeze_norms
    )
    pairs = splits[task.name].pairs
    if shortage := sequences_lib.shortage(task.name, pairs, config):
      print(shortage, file=sys.stderr)

  def pose(stage, stage_config, allowed_of) -> list[_Problem]:
    problems = []
    for task in tasks:
      own = _identity(
        model_fingerprint, splits[task.name].pairs, stage_config, seed
      )
      evaluator = evaluators[task.name]
      problems.append(
        _Problem(
          task,
          splits[task.name],
          target_lib.Target.of(stage_config, evaluator, seed),
          allowed_of(task.name),
          open_study(opened, f"{task.name}/{stage}", own, stage_config, seed),
          own,
        )
      )
    return problems

  def everything(name):
    shapes = evaluators[name].shapes
    given = allowed or {n: np.ones(shape, bool) for n, shape in shapes.items()}
    return {n: np.asarray(given[n], bool) for n in shapes}

  robust: dict[str, _Winner] = {}
  if config.ablation_outside != "plain":
    problems = pose("robust", config.robust, everything)
    robust = _search(problems, config.robust, seed)
  inside = lambda name: (
    robust[name].candidate.node_mask if robust else everything(name)
  )
  problems = pose("core", config.core, inside)
  core = _search(problems, config.core, seed)
  found = {}
  for problem in problems:
    name = problem.task.name
    circuits = [
      _to_circuit(problem, won[name], stage_config, seed) if won else None
      for won, stage_config in ((core, config.core), (robust, config.robust))
    ]
    found[name] = Found(*circuits)
    if on_found:
      on_found(found[name])
  return found


def _search(
  problems: Sequence[_Problem], config: config_lib.PruneConfig, seed: int
) -> dict[str, _Winner]:
  """Returns one stage's circuits by task name."""
  while any(_taken(p.study) < config.num_runs for p in problems):
    for shape in sorted({p.shape for p in problems}):
      _search_round([p for p in problems if p.shape == shape], config, seed)
  return {p.task.name: _finish(p, config) for p in problems}


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
) -> Found:
  """Searches one task's smallest circuits; see `find_circuits`."""
  return find_circuits(
    model, params, [task], config, pretrain_means, seed, allowed=allowed
  )[task.name]


def _worth_cutting(trials, config):
  """Returns the best trial, and the next ones that are nearly as small.

  The clean-up may turn their order round; it is cheap beside a long search. So
  may growing: of robust masks that miss, the nearest is often the largest.
  """
  first, *others = trials
  most = 1.5 * first.user_attrs["num_edges"]
  can_grow = config.ablation_outside != "plain"
  few = lambda t: (
    (can_grow or t.user_attrs["meets_target"])
    and t.user_attrs["num_edges"] <= most
  )
  count = max(1, config.num_runs // _RUNS_PER_CUT)
  return [first, *filter(few, others[:count])]


def _over_seeds(trials, trial):
  """Returns the edges of the hyperparameters that most seeds ran, sorted.

  The given trial's own, where none were repeated.
  """
  groups: dict[tuple, list] = {tuple(trial.params.values()): []}
  for t in trials:
    groups.setdefault(tuple(t.params.values()), []).append(t)
  most = max(groups.values(), key=len)
  return sorted(t.user_attrs["num_edges"] for t in most)


def _search_round(problems, config, seed):
  """Proposes, trains, thresholds and tells one round of several tasks."""
  evaluator = problems[0].target.evaluator
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
    evaluator.model,
    evaluator.params,
    config,
    masks.Run(
      _hyperparameters(config, [t for _, t in asked]),
      batched.stack([p.target.evaluator.means for p, _ in asked]),
      batched.stack([p.splits.train for p, _ in asked]),
      batched.stack([p.allowed for p, _ in asked]),
    ),
    seed,
    f"pruning {names}",
  )
  with progress.progress_bar(len(asked), 0, f"thresholding {names}") as bar:
    for i, (problem, trial) in enumerate(asked):
      candidate = _threshold(problem, batched.take(states, i))
      trial.set_user_attr("order", candidate.order.tolist())
      for name in _TRIAL_METRICS:
        trial.set_user_attr(name, getattr(candidate, name))
      problem.study.tell(trial, objective(candidate))
      bar.update()


def _threshold(problem, state) -> thresholding.Candidate:
  """Returns a run's circuit as candidates are compared by it.

  An attack for every size would take longer than the training: a robust run is
  taken as it was trained.
  """
  order = masks.node_order(state)
  order = order[masks.flatten(problem.allowed)[order]]
  num_open = sum(int(np.sum(tau >= 0)) for tau in state.tau.values())
  num_open = max(1, num_open)
  target = problem.target.on(
    sequences_lib.spread_pairs(problem.splits.validation, _SEARCH_PAIRS)
  )
  if target.accuracy_lost is None:
    return thresholding.keep_first(target, order, num_open, _SEARCH_TOLERANCE)
  return thresholding.keep(target, order, num_open)


def _finish(problem, config) -> _Winner:
  """Returns the task's circuit from its finished trials."""
  task, splits, target = problem.task, problem.splits, problem.target
  trials = sorted(_finished(problem.study), key=lambda t: (t.value, t.number))
  candidates = []
  chosen = _worth_cutting(trials, config)
  with progress.progress_bar(len(chosen) + 1, 0, f"cutting {task.name}") as bar:
    for trial in chosen:
      cut = thresholding.cut(
        target,
        np.asarray(trial.user_attrs["order"], int),
        trial.user_attrs["num_nodes"],
      )
      cut = dataclasses.replace(cut, run=trial.number)
      candidates.append(thresholding.clean_up(target, cut, splits.train))
      bar.update()
    best, steps = min(candidates, key=lambda c: thresholding.rank(c[0]))
    trial = next(t for t in trials if t.number == best.run)
    curve, sizes = thresholding.size_curve(
      target.evaluator, best.order, config.curve_targets, target.shifts
    )
    bar.update()
  details = {
    "identity": problem.identity,
    "runs": [
      {**t.params, "seed": t.user_attrs["seed"]}
      | {name: t.user_attrs[name] for name in _TRIAL_METRICS}
      for t in sorted(trials, key=lambda t: t.number)
    ],
    "clean_up": steps,
    "curve": curve,
    "sizes_at_targets": sizes,
    "edges_over_seeds": _over_seeds(trials, trial),
    "order": best.order.tolist(),
  }
  return _Winner(best, details)


def _to_circuit(
  problem: _Problem, won: _Winner, config: config_lib.PruneConfig, seed: int
) -> circuit_lib.Circuit:
  """Returns a stage's circuit, measured on test pairs."""
  best, essential = won.candidate, None
  is_core = config.ablation_outside == "plain"
  if config.edge_steps and best.meets_target and is_core:
    essential = edge_masks.find_essential(
      problem.target,
      best,
      problem.splits.train,
      config,
      seed,
      f"masking edges of {problem.task.name}",
    )
  return metrics.to_circuit(
    problem.target.evaluator,
    problem.task,
    config,
    problem.splits,
    best,
    essential,
    won.details,
  )
