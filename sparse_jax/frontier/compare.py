"""Sizes at matched loss: geometric means, a ratio, and its interval.

Pure functions of finished cells (`cells.Result`). A model is a set of cells
that differ by seed alone; it passes a task if every one of them has learned it
and has a circuit that meets the target on validation pairs.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_jax import config as config_lib

MEASURES = ("num_edges", "num_essential_edges", "num_nodes")
_RESAMPLES = 1000
_TAILS = (0.05, 0.95)


def pruned_tasks(results: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns the tasks of which some cell has a circuit, each once."""
  return list(
    dict.fromkeys(
      task
      for result in results
      for task, found in result["tasks"].items()
      if "num_edges" in found
    )
  )


@dataclasses.dataclass(frozen=True)
class Model:
  """Cells that differ by seed alone.

  Attributes:
    name: `grid.Cell.model`.
    width: `d_model`.
    density: final share of nonzero block weights; 1 is dense.
    variant: what else differs, or "".
    activation_fraction: share of the channels that AbsTopK keeps; 1 is all.
    eval_losses: held-out loss in nats a token, by seed.
    figures: by seed, what is known of every task.
    target: task loss that circuits are cut to, in nats a side.
    tokens: that each cell was trained on.
    cells: names of the cells, by seed.
  """

  name: str
  width: int
  density: float
  variant: str
  activation_fraction: float
  eval_losses: tuple[float, ...]
  figures: tuple[Mapping[str, Mapping[str, Any]], ...]
  target: float
  tokens: int
  cells: tuple[str, ...]

  @property
  def is_dense(self) -> bool:
    """Whether it is the baseline."""
    return self.density == 1

  @property
  def loss(self) -> float:
    """Mean held-out loss over seeds, in nats a token."""
    return float(np.mean(self.eval_losses))

  def passes(self, task: str) -> bool:
    """Whether all seeds have a circuit of the task that meets the target."""
    return all(
      seed.get(task, {}).get("learned") and seed[task].get("meets_target")
      for seed in self.figures
    )

  def passes_on_test(self, task: str) -> bool:
    """Whether they meet the target on test pairs, of new templates, too."""
    return self.passes(task) and all(
      seed[task]["test_loss"] <= self.target for seed in self.figures
    )

  def has_edges(self, task: str) -> bool:
    """Whether every seed's circuit of a passed task has an edge."""
    return all(seed[task]["num_edges"] > 0 for seed in self.figures)

  @property
  def passed(self) -> frozenset[str]:
    """The tasks it passes."""
    return frozenset(t for t in self.figures[0] if self.passes(t))

  def log_sizes(self, measure: str, tasks: Sequence[str]) -> np.ndarray:
    """Returns the logarithms of circuit sizes, `[seeds, tasks]`.

    NaN where a circuit has no such figure; a size of 0 counts as 1.
    """
    return np.array(
      [
        [_log(seed[task].get(measure)) for task in tasks]
        for seed in self.figures
      ],
      float,
    ).reshape(len(self.figures), len(tasks))


def _log(size) -> float:
  return float("nan") if size is None else float(np.log(max(size, 1)))


def models_of(results: Iterable[Mapping[str, Any]]) -> list[Model]:
  """Returns the models that finished cells make, in their order."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for result in results:
    groups.setdefault(result["model"], []).append(result)
  return [_model_of(name, group) for name, group in groups.items()]


def _model_of(name: str, cells: Sequence[Mapping[str, Any]]) -> Model:
  first = cells[0]
  of = lambda kind, group: config_lib.from_dict(kind, first["settings"][group])
  return Model(
    name=name,
    width=first["width"],
    density=first["density"],
    variant=first["variant"],
    activation_fraction=of(
      config_lib.SparsityConfig, "sparsity"
    ).activation_fraction,
    eval_losses=tuple(r["eval_loss"] for r in cells),
    figures=tuple(r["tasks"] for r in cells),
    target=of(config_lib.PruneConfig, "prune").target_per_side,
    tokens=first["tokens"],
    cells=tuple(r["name"] for r in cells),
  )


def common_tasks(models: Sequence[Model]) -> tuple[str, ...]:
  """Returns the tasks that geometric means in one picture are taken over.

  Means over different tasks cannot be compared. Of all sets of tasks that two
  models have in common: one that dense and sparse models pass, if there is one;
  then the one with the largest number of models that pass all of it, times the
  square root of its number of tasks, by which the error of a mean falls; then
  the one of more tasks.
  """
  pairs = itertools.combinations([m.passed for m in models], 2)
  candidates = {a & b for a, b in pairs} - {frozenset()}

  def score(tasks):
    kinds = [m.is_dense for m in models if tasks <= m.passed]
    both = len(set(kinds)) > 1
    weight = len(tasks) ** 0.5 * len(kinds)
    return both, weight, len(tasks), sorted(tasks)

  return tuple(sorted(max(candidates, key=score, default=())))


def mean_size(
  model: Model, measure: str, tasks: Sequence[str], seed: int = 0
) -> dict[str, float] | None:
  """Returns a model's geometric mean size over tasks, with its 90% interval.

  The bootstrap resamples seeds and tasks, as far as there are several. None
  where a size is unknown or no task is given.
  """
  logs_SxT = model.log_sizes(measure, tasks)
  if not logs_SxT.size or np.isnan(logs_SxT).any():
    return None
  rng = np.random.default_rng(seed)
  drawn = [_resampled(logs_SxT, rng) for _ in range(_RESAMPLES)]
  return _interval(logs_SxT.mean(), drawn)


def _resampled(logs_SxT, rng):
  seeds, tasks = (rng.integers(0, n, n) for n in logs_SxT.shape)
  return logs_SxT[seeds][:, tasks].mean()


def _interval(value, drawn) -> dict[str, float | None]:
  """Returns the exponential of a value and of its interval.

  `low` and `high` are None where the draws do not differ: one seed and one
  task have no spread, which is not to say that they are exact.
  """
  low = high = None
  if len(drawn) and np.ptp(drawn) > 1e-9:
    low, high = map(float, np.exp(np.quantile(drawn, _TAILS)))
  return {"value": float(np.exp(value)), "low": low, "high": high}


def baseline(dense: Iterable[Model]) -> list[Model]:
  """Returns the dense models whose loss no narrower one equals or beats.

  A wider model of higher loss is undertrained: its circuits are larger than
  dense ones of that loss need to be.
  """
  kept: list[Model] = []
  for model in sorted(dense, key=lambda m: m.width):
    if not kept or model.loss < kept[-1].loss:
      kept.append(model)
  return kept


def bracket(dense: Sequence[float], loss: float) -> tuple[int, int] | None:
  """Returns which two neighbours among the dense models' losses enclose `loss`.

  The one of higher loss first; None outside the dense range: nothing is
  extrapolated.
  """
  order = sorted(range(len(dense)), key=lambda i: -dense[i])
  for worse, better in itertools.pairwise(order):
    if dense[better] <= loss <= dense[worse]:
      return worse, better
  return None


def interpolation_weight(loss: float, worse: float, better: float) -> float:
  """Returns the better model's weight at `loss`, on a logarithmic axis.

  0 at the worse model's loss, 1 at the better one's, and not beyond.
  """
  if worse == better:
    return 0.5
  share = (np.log(worse) - np.log(loss)) / (np.log(worse) - np.log(better))
  return float(np.clip(share, 0.0, 1.0))


def ratio_at_matched_loss(
  dense: Sequence[Model], sparse: Model, seed: int = 0
) -> dict[str, Any]:
  """Returns how many times larger dense circuits are at a sparse model's loss.

  Dense sizes are interpolated between two neighbouring dense models, linearly
  in log size over log loss, task by task; the ratio is the geometric mean over
  the tasks that all three pass. The bootstrap resamples the seeds of each model
  and the tasks, finds the neighbours anew, among the dense models that pass
  these tasks, and interpolates anew; draws whose loss no two of them enclose
  are left out and counted.

  Args:
    dense: the dense models.
    sparse: the sparse one.
    seed: of the bootstrap.

  Returns:
    `ratios`: by measure, `value`, `low` and `high`, or None, and then `why`;
    `ratios_on_test`: the same over the tasks whose circuits meet the target on
    test pairs too; `ratios_with_edges`: over those whose circuits all have an
    edge; `ratios_of_smallest`: with the smallest circuit of a model's seeds
    for every task, so that one failed search does not decide. The `loss` it is
    matched at, the dense models `between` which was interpolated, the `tasks`,
    `tasks_on_test` and `tasks_with_edges`, the number of `seeds` of each of the
    three, `outside`: the share of draws left out,
    `by_seed`: the ratio of edges of each of the sparse model's seeds alone,
    None outside the dense range, and `left_out`: by task, the models that do
    not pass it.
  """
  nothing = dict.fromkeys(MEASURES)
  result: dict[str, Any] = {
    "model": sparse.name,
    "loss": sparse.loss,
    "ratios": nothing,
    "ratios_on_test": nothing,
    "ratios_with_edges": nothing,
    "ratios_of_smallest": nothing,
    "tasks": [],
    "tasks_on_test": [],
    "tasks_with_edges": [],
    "by_seed": [],
    "left_out": {},
  }
  enclosing = bracket([m.loss for m in dense], sparse.loss)
  if enclosing is None:
    losses = sorted(m.loss for m in dense)
    span = f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else "none"
    return result | {
      "why": f"loss {sparse.loss:.3f} outside the dense models' ({span})"
    }
  between = [dense[i] for i in enclosing]
  three = (*between, sparse)
  names = sorted(set().union(*(m.figures[0] for m in three)))
  tasks = [t for t in names if all(_is_measured(m, t) for m in three)]
  result |= {
    "between": [m.name for m in between],
    "seeds": [len(m.eval_losses) for m in three],
    "tasks": tasks,
    "left_out": {
      t: [m.name for m in three if not _is_measured(m, t)]
      for t in names
      if t not in tasks and any(m.passes(t) for m in three)
    },
  }
  if not tasks:
    return result | {"why": "no task that all three models pass"}
  ratios, outside, by_seed = _ratios(dense, sparse, tasks, seed)
  result |= {"ratios": ratios, "outside": outside, "by_seed": by_seed}
  result["ratios_of_smallest"], *_ = _ratios(
    [_smallest_of_seeds(m, tasks) for m in _measured(dense, tasks)],
    _smallest_of_seeds(sparse, tasks),
    tasks,
    seed,
  )
  for name, keep in (
    ("on_test", Model.passes_on_test),
    ("with_edges", Model.has_edges),
  ):
    some = [t for t in tasks if all(keep(m, t) for m in three)]
    result[f"tasks_{name}"] = some
    if some:
      result[f"ratios_{name}"], *_ = _ratios(dense, sparse, some, seed)
  return result


def _smallest_of_seeds(model: Model, tasks: Sequence[str]) -> Model:
  """Returns the model of the mean loss and of every task's smallest sizes."""
  figures = {
    task: model.figures[0][task]
    | {m: min(seed[task][m] for seed in model.figures) for m in MEASURES}
    for task in tasks
  }
  return dataclasses.replace(
    model, eval_losses=(model.loss,), figures=(figures,)
  )


def _is_measured(model: Model, task: str) -> bool:
  """Whether a model passes a task and every size of its circuits is known."""
  if not model.passes(task):
    return False
  return not any(np.isnan(model.log_sizes(m, [task])).any() for m in MEASURES)


def _measured(models: Iterable[Model], tasks: Sequence[str]) -> list[Model]:
  return [m for m in models if all(_is_measured(m, t) for t in tasks)]


def _ratios(dense, sparse, tasks, seed):
  """Returns the ratios by measure, the draws left out, and edges by seed."""
  # In a draw other dense models may be the neighbours.
  usable = _measured(dense, tasks)
  models = [*usable, sparse]
  losses = [np.array(m.eval_losses) for m in models]
  logs = [
    np.stack([m.log_sizes(measure, tasks) for measure in MEASURES])
    for m in models
  ]  # Each [measures, seeds, tasks].

  def log_ratios(seeds, chosen):
    at = [x[s].mean() for x, s in zip(losses, seeds, strict=True)]
    sizes = [
      x[:, s][:, :, chosen].mean((1, 2))
      for x, s in zip(logs, seeds, strict=True)
    ]
    *of_dense, of_sparse = at
    enclosing = bracket(of_dense, of_sparse)
    if enclosing is None:
      return None
    worse, better = enclosing
    weight = interpolation_weight(of_sparse, at[worse], at[better])
    between = (1 - weight) * sizes[worse] + weight * sizes[better]
    return between - sizes[-1]

  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(0, n, n)
  drawn = [
    log_ratios([draw(len(x)) for x in losses], draw(len(tasks)))
    for _ in range(_RESAMPLES)
  ]
  inside = np.reshape([d for d in drawn if d is not None], (-1, len(MEASURES)))
  everything = [np.arange(len(x)) for x in losses]
  all_tasks = np.arange(len(tasks))
  whole = log_ratios(everything, all_tasks)
  found = {
    measure: _interval(whole[i], inside[:, i])
    for i, measure in enumerate(MEASURES)
  }
  alone = [
    log_ratios([*everything[:-1], [s]], all_tasks) for s in everything[-1]
  ]
  by_seed = [None if a is None else float(np.exp(a[0])) for a in alone]
  return found, 1 - len(inside) / len(drawn), by_seed


def best(ratios: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns the comparison of the largest ratio of edges, None without any.

  Those over less than half as many tasks as another are left aside: one lucky
  task is no headline. So are those with an empty circuit in every task.
  """
  found = [r for r in ratios if r["tasks_with_edges"]]
  most = max((len(r["tasks"]) for r in found), default=0)
  found = [r for r in found if 2 * len(r["tasks"]) >= most]
  value = lambda r: r["ratios"]["num_edges"]["value"]
  return max(found, key=value, default=None)


def beside_base(
  results: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Returns every variant's cell beside its base: the one without the variant.

  Each has the `variant` and `seed`, its `loss`, `above`: by how much that is
  higher than the base's, the `tasks` that both pass, `edges` over the base's
  (geometric mean over those tasks, None without any), and how many tasks it and
  the base have `passed`. Variants without a finished base are left out.
  """
  key = lambda r: (r["width"], r["density"], r["seed"])
  bases = {key(r): r for r in results if not r["variant"]}
  rows = []
  for result in results:
    base = bases.get(key(result))
    if not result["variant"] or base is None:
      continue
    (mine,), (other,) = models_of([result]), models_of([base])
    tasks = sorted(mine.passed & other.passed)
    logs = [m.log_sizes("num_edges", tasks) for m in (mine, other)]
    rows.append(
      {
        "variant": result["variant"],
        "seed": result["seed"],
        "loss": mine.loss,
        "above": mine.loss - other.loss,
        "tasks": tasks,
        "edges": float(np.exp(np.mean(logs[0] - logs[1]))) if tasks else None,
        "passed": (len(mine.passed), len(other.passed)),
      }
    )
  return rows


def compare_cells(
  results: Sequence[Mapping[str, Any]], contenders: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns what frontier.json holds of finished cells.

  Args:
    results: the finished cells.
    contenders: variants that may be the best.

  Returns:
    `models`: each with its loss and its mean sizes over `common_tasks`, and
    whether it is on the frontier: in the dense `baseline`, or sparse and no
    variant, or a contender; `ratios`: of every model that is not dense, and
    as `with_all_dense` that of edges without regard to `baseline`; `best`: the
    largest among the sparse models on the frontier. The choice of the largest
    is not corrected for.
    `variants`: as `beside_base` returns.
    `without_edges`: cells and tasks whose circuit has no edge and counts as
    one.
  """
  models = models_of(results)
  dense = [m for m in models if m.is_dense]
  sparse = [m for m in models if not m.is_dense]
  dense_curve = baseline(dense)
  frontier = dense_curve + [
    m for m in sparse if not m.variant or m.variant in contenders
  ]
  common = common_tasks(frontier)
  ratios = [
    ratio_at_matched_loss(dense_curve, m)
    | {"with_all_dense": ratio_at_matched_loss(dense, m)["ratios"]["num_edges"]}
    for m in sparse
  ]
  on_frontier = {m.name for m in frontier}
  described = [
    {
      "name": m.name,
      "width": m.width,
      "density": m.density,
      "variant": m.variant,
      "activation_fraction": m.activation_fraction,
      "on_frontier": m.name in on_frontier,
      "cells": list(m.cells),
      "tokens": m.tokens,
      "eval_loss": m.loss,
      "eval_losses": list(m.eval_losses),
      "passed": sorted(m.passed),
      "sizes": {
        measure: mean_size(m, measure, common)
        if set(common) <= m.passed
        else None
        for measure in MEASURES
      },
    }
    for m in models
  ]
  return {
    "common_tasks": list(common),
    "models": described,
    "ratios": ratios,
    "best": best([r for r in ratios if r["model"] in on_frontier]),
    "variants": beside_base(results),
    "without_edges": [
      f"{r['name']}: {task}"
      for r in results
      for task, found in r["tasks"].items()
      if found.get("meets_target") and found.get("num_edges") == 0
    ],
  }


def shown_interval(found: Mapping[str, float | None] | None) -> str:
  """Returns "value [low, high]", the value alone, or a dash."""
  if not found:
    return "–"
  value, low, high = (found[k] for k in ("value", "low", "high"))
  if low is None:
    return f"{value:.3g}"
  return f"{value:.3g} [{low:.3g}, {high:.3g}]"
