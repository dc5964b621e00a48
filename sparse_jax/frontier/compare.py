"""Sizes at matched loss: geometric means, a ratio, and its interval.

A model group passes a task if each of its runs has learned it and has a circuit
that meets the target on validation pairs.

Axes: R draws of the bootstrap, K sizes, M dense models, S seeds, T tasks.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.utils import bootstrap

SIZES = ("num_edges", "num_essential_edges", "num_nodes")


def pruned_tasks(results: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns the tasks of which some run has a circuit, each once."""
  tasks = [
    t for r in results for t, m in r["tasks"].items() if "num_edges" in m
  ]
  return list(dict.fromkeys(tasks))


@dataclasses.dataclass(frozen=True)
class ModelGroup:
  """Runs that differ by seed alone; tuples are by seed.

  Attributes:
    name: `grid.Run.model`.
    eval_losses: held-out, in nats a token.
    metrics: those of every task.
    target: task loss that circuits are cut to, in nats a side.
    tokens: that each run was trained on.
  """

  name: str
  width: int
  density: float
  variant: str
  activation_fraction: float
  eval_losses: tuple[float, ...]
  metrics: tuple[Mapping[str, Mapping[str, Any]], ...]
  target: float
  tokens: int
  runs: tuple[str, ...]

  @property
  def is_dense(self) -> bool:
    return self.density == 1

  @property
  def loss(self) -> float:
    """Mean held-out loss over seeds, in nats a token."""
    return float(np.mean(self.eval_losses))

  def passes(self, task: str) -> bool:
    """Whether all seeds have a circuit of the task that meets the target."""
    return all(
      seed.get(task, {}).get("learned") and seed[task].get("meets_target")
      for seed in self.metrics
    )

  def passes_on_test(self, task: str) -> bool:
    """Whether they meet the target on test pairs, of new templates, too."""
    return self.passes(task) and all(
      seed[task]["test_loss"] <= self.target for seed in self.metrics
    )

  def has_edges(self, task: str) -> bool:
    """Whether every seed's circuit of the task has an edge."""
    return all(seed[task]["num_edges"] > 0 for seed in self.metrics)

  def has_sizes(self, task: str) -> bool:
    """Whether it passes a task and every size of its circuits is known."""
    return self.passes(task) and not np.isnan(self.log_sizes([task])).any()

  @property
  def passed(self) -> frozenset[str]:
    return frozenset(t for t in self.metrics[0] if self.passes(t))

  def log_sizes(
    self, tasks: Sequence[str], sizes: Sequence[str] = SIZES
  ) -> np.ndarray:
    """Returns log sizes `[K, S, T]`: NaN if unknown; 0 counts as 1."""
    values_KxSxT = [
      [[seed[task].get(size) for task in tasks] for seed in self.metrics]
      for size in sizes
    ]
    # None becomes NaN, which `maximum` passes on.
    return np.log(np.maximum(np.array(values_KxSxT, float), 1))

  def smallest_of_seeds(self, tasks: Sequence[str]) -> "ModelGroup":
    """Returns one run of the mean loss and of every task's smallest sizes."""
    smallest = {
      task: self.metrics[0][task]
      | {size: min(seed[task][size] for seed in self.metrics) for size in SIZES}
      for task in tasks
    }
    return dataclasses.replace(
      self, eval_losses=(self.loss,), metrics=(smallest,)
    )


def group_by_model(results: Iterable[Mapping[str, Any]]) -> list[ModelGroup]:
  """Returns the model groups that finished runs make, in their order."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for result in results:
    groups.setdefault(result["model"], []).append(result)
  return list(map(_group, groups.values()))


def _group(runs: Sequence[Mapping[str, Any]]) -> ModelGroup:
  first = runs[0]
  of = lambda kind, part: config_lib.from_dict(kind, first["settings"][part])
  sparsity = of(config_lib.SparsityConfig, "sparsity")
  return ModelGroup(
    first["model"],
    **{k: first[k] for k in ("width", "density", "variant", "tokens")},
    activation_fraction=sparsity.activation_fraction,
    eval_losses=tuple(r["eval_loss"] for r in runs),
    metrics=tuple(r["tasks"] for r in runs),
    target=of(config_lib.PruneConfig, "prune").target_per_side,
    runs=tuple(r["name"] for r in runs),
  )


def common_tasks(models: Sequence[ModelGroup]) -> tuple[str, ...]:
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
    weight = len(tasks) ** 0.5 * len(kinds)
    return len(set(kinds)), weight, len(tasks), sorted(tasks)

  return tuple(sorted(max(candidates, key=score, default=())))


def mean_size(
  model: ModelGroup, size: str, tasks: Sequence[str], seed: int = 0
) -> dict[str, float | None] | None:
  """Returns a model's geometric mean size over tasks, with its 90% interval.

  None where a size is unknown or no task is given.
  """
  (logs_SxT,) = model.log_sizes(tasks, [size])
  if not logs_SxT.size or np.isnan(logs_SxT).any():
    return None
  seeds_RxS, tasks_RxT = bootstrap.draw_indices(logs_SxT.shape, seed)
  draws_RxSxT = logs_SxT[seeds_RxS[:, :, None], tasks_RxT[:, None, :]]
  return _exp_interval(logs_SxT.mean(), draws_RxSxT.mean((1, 2)))


def _exp_interval(value, draws_R) -> dict[str, float | None]:
  """Returns exponentials; draws without a spread give no interval."""
  low = high = None
  if len(draws_R) and np.ptp(draws_R) > 1e-9:
    low, high = map(float, np.exp(bootstrap.interval(draws_R)))
  return {"value": float(np.exp(value)), "low": low, "high": high}


def baseline(dense: Iterable[ModelGroup]) -> list[ModelGroup]:
  """Returns the dense models whose loss no narrower one equals or beats.

  A wider model of higher loss is undertrained: its circuits are larger than
  dense ones of that loss need to be.
  """
  kept: list[ModelGroup] = []
  for model in sorted(dense, key=lambda m: m.width):
    if not kept or model.loss < kept[-1].loss:
      kept.append(model)
  return kept


def enclosing_pairs(
  dense_RxM: np.ndarray, loss_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which two neighbours among the dense losses enclose a loss.

  As `[R, 2]` indices of models, the one of higher loss first, and `[R]` whether
  there are two: outside the dense range nothing is extrapolated.
  """
  order_RxM = np.argsort(-dense_RxM, axis=1, kind="stable")
  falling_RxM = np.take_along_axis(dense_RxM, order_RxM, axis=1)
  worse, better = falling_RxM[:, :-1], falling_RxM[:, 1:]
  encloses = (better <= loss_R[:, None]) & (loss_R[:, None] <= worse)
  if not encloses.shape[1]:
    return np.zeros((len(loss_R), 2), int), np.zeros(len(loss_R), bool)
  first_R = encloses.argmax(1)
  columns_Rx2 = np.stack([first_R, first_R + 1], axis=1)
  pairs_Rx2 = np.take_along_axis(order_RxM, columns_Rx2, axis=1)
  return pairs_Rx2, encloses.any(1)


def ratio_at_matched_loss(
  dense: Sequence[ModelGroup], sparse: ModelGroup, seed: int = 0
) -> dict[str, Any]:
  """Returns how many times larger dense circuits are at a sparse model's loss.

  Dense sizes are interpolated between two neighbouring dense models, linearly
  in log size over log loss, task by task; the ratio is the geometric mean over
  the tasks that all three pass. The bootstrap resamples the seeds of each model
  and the tasks, finds the neighbours anew, among the dense models that pass
  these tasks, and interpolates anew; draws whose loss no two of them enclose
  are left out and counted.

  Returns:
    `ratios`: by size, `value`, `low` and `high`, or None, and then `why`;
    `ratios_on_test`: over the tasks whose circuits meet the target on test
    pairs too; `ratios_with_edges`: over those whose circuits all have an edge;
    `ratios_of_smallest`: with the smallest circuit of a model's seeds, so that
    one failed search does not decide. The `tasks` of each, the `loss`, the
    dense models `between` which was interpolated, the number of `seeds` of the
    three, `outside`: the share of draws left out, `by_seed`: the ratio of edges
    of each sparse seed alone, None outside the dense range, and `left_out`: by
    task, the models that do not pass it.
  """
  result: dict[str, Any] = {"model": sparse.name, "loss": sparse.loss}
  result |= {f"tasks{of}": [] for of in ("", "_on_test", "_with_edges")}
  result |= {"by_seed": [], "left_out": {}}
  for of in ("", "_on_test", "_with_edges", "_of_smallest"):
    result[f"ratios{of}"] = dict.fromkeys(SIZES)
  losses = np.array([[m.loss for m in dense]])
  pairs, inside = enclosing_pairs(losses, np.array([sparse.loss]))
  if not inside[0]:
    span = f"{losses.min():.3f} to {losses.max():.3f}" if dense else "none"
    return result | {
      "why": f"loss {sparse.loss:.3f} outside the dense models' ({span})"
    }
  between = [dense[i] for i in pairs[0]]
  three = (*between, sparse)
  names = sorted(set().union(*(m.metrics[0] for m in three)))
  without = {t: [m.name for m in three if not m.has_sizes(t)] for t in names}
  tasks = [t for t in names if not without[t]]
  result |= {
    "between": [m.name for m in between],
    "seeds": [len(m.eval_losses) for m in three],
    "tasks": tasks,
    "left_out": {
      t: models
      for t, models in without.items()
      if models and any(m.passes(t) for m in three)
    },
  }
  if not tasks:
    return result | {"why": "no task that all three models pass"}
  ratios, outside, by_seed = _ratios(dense, sparse, tasks, seed)
  result |= {"ratios": ratios, "outside": outside, "by_seed": by_seed}
  measured = [m for m in dense if all(map(m.has_sizes, tasks))]
  result["ratios_of_smallest"], *_ = _ratios(
    [m.smallest_of_seeds(tasks) for m in measured],
    sparse.smallest_of_seeds(tasks),
    tasks,
    seed,
  )
  for name, keep in (
    ("on_test", ModelGroup.passes_on_test),
    ("with_edges", ModelGroup.has_edges),
  ):
    some = [t for t in tasks if all(keep(m, t) for m in three)]
    result[f"tasks_{name}"] = some
    if some:
      result[f"ratios_{name}"], *_ = _ratios(dense, sparse, some, seed)
  return result


def _ratios(dense, sparse, tasks, seed):
  """Returns the ratios by size, the share of draws left out, edges by seed."""
  # In a draw other dense models may be the neighbours.
  models = [m for m in dense if all(map(m.has_sizes, tasks))] + [sparse]
  losses = [np.array(m.eval_losses) for m in models]
  logs = [m.log_sizes(tasks) for m in models]  # Each [K, S, T].

  def log_ratios(seeds, tasks_RxT):
    """[K, R], NaN where no two dense models enclose the sparse one's loss."""
    of_models = list(zip(losses, logs, seeds, strict=True))
    loss_RxM = np.stack([x[s].mean(1) for x, _, s in of_models], axis=1)
    drawn = [x[:, s[:, :, None], tasks_RxT[:, None]] for _, x, s in of_models]
    sizes_KxRxM = np.stack([x.mean((2, 3)) for x in drawn], axis=2)
    pairs_Rx2, inside = enclosing_pairs(loss_RxM[:, :-1], loss_RxM[:, -1])
    draws = np.arange(len(pairs_Rx2))
    worse, better = pairs_Rx2.T
    log_loss = np.log(loss_RxM)
    start = log_loss[draws, worse]
    span = start - log_loss[draws, better]
    share = (start - log_loss[:, -1]) / np.where(span, span, 1)
    weight = np.where(span, np.clip(share, 0, 1), 0.5)
    between = (1 - weight) * sizes_KxRxM[:, draws, worse]
    between += weight * sizes_KxRxM[:, draws, better]
    return np.where(inside, between - sizes_KxRxM[:, :, -1], np.nan)

  *seeds, tasks_RxT = bootstrap.draw_indices(
    (*map(len, losses), len(tasks)), seed
  )
  draws_KxR = log_ratios(seeds, tasks_RxT)
  inside = ~np.isnan(draws_KxR[0])
  all_seeds = [np.arange(len(x))[None] for x in losses]
  all_tasks = np.arange(len(tasks))[None]
  whole = log_ratios(all_seeds, all_tasks)[:, 0]
  ratios = {
    size: _exp_interval(value, draws_R[inside])
    for size, value, draws_R in zip(SIZES, whole, draws_KxR, strict=True)
  }
  by_seed = []
  for one in all_seeds[-1].T[:, None]:
    (edges,), *_ = np.exp(log_ratios([*all_seeds[:-1], one], all_tasks))
    by_seed.append(None if np.isnan(edges) else float(edges))
  return ratios, float(1 - inside.mean()), by_seed


def best(ratios: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns the comparison of the largest ratio of edges, None without any.

  Those over less than half as many tasks as another are left aside: one lucky
  task is no headline. So are those with an empty circuit in every task.
  """
  with_edges = [r for r in ratios if r["tasks_with_edges"]]
  most = max((len(r["tasks"]) for r in with_edges), default=0)
  return max(
    (r for r in with_edges if 2 * len(r["tasks"]) >= most),
    key=lambda r: r["ratios"]["num_edges"]["value"],
    default=None,
  )


def beside_base(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns every variant's run beside its base: the one without the variant.

  `above`: by how much its loss is higher than the base's; `edges`: over the
  base's, geometric mean over the `tasks` that both pass, None without any;
  `passed`: how many it and the base pass. No row without a finished base.
  """
  key = lambda r: (r["width"], r["density"], r["seed"])
  bases = {key(r): r for r in results if not r["variant"]}
  rows = []
  for result in results:
    base = bases.get(key(result))
    if not result["variant"] or base is None:
      continue
    (mine,), (other,) = group_by_model([result]), group_by_model([base])
    tasks = sorted(mine.passed & other.passed)
    logs = [m.log_sizes(tasks, ["num_edges"]) for m in (mine, other)]
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


def compare_runs(
  results: Sequence[Mapping[str, Any]], contenders: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns what frontier.json holds of finished runs.

  `models`: with mean sizes over `common_tasks`, and whether they are on the
  frontier: in the dense `baseline`, or sparse and no variant, or a contender;
  `ratios`: of every sparse model, `with_all_dense` that of edges without regard
  to `baseline`; `best`: the largest on the frontier, a choice that is not
  corrected for; `variants`: as of `beside_base`; `without_edges`: runs and
  tasks whose circuit has no edge and counts as one.
  """
  models = group_by_model(results)
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
  fields = "name", "width", "density", "variant", "activation_fraction"
  described = [
    {
      **{field: getattr(m, field) for field in fields},
      "on_frontier": m.name in on_frontier,
      "runs": list(m.runs),
      "tokens": m.tokens,
      "eval_loss": m.loss,
      "eval_losses": list(m.eval_losses),
      "passed": sorted(m.passed),
      "sizes": {
        size: mean_size(m, size, common) if set(common) <= m.passed else None
        for size in SIZES
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
      for task, metrics in r["tasks"].items()
      if metrics.get("meets_target") and metrics.get("num_edges") == 0
    ],
  }


def interval_text(estimate: Mapping[str, float | None] | None) -> str:
  """Returns "value [low, high]", the value alone, or a dash."""
  if not estimate:
    return "–"
  value, low, high = (estimate[k] for k in ("value", "low", "high"))
  return f"{value:.3g}" + ("" if low is None else f" [{low:.3g}, {high:.3g}]")
