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
from sparse_jax.utils import bootstrap, tables

SIZES = ("num_edges", "num_essential_edges", "num_nodes")

Record = Mapping[str, Any]  # Of a run as in run.json, a model, or a ratio.


def pruned_tasks(results: Iterable[Record]) -> list[str]:
  """Returns the tasks of which some run has a circuit, each once."""
  metrics = [item for r in results for item in r["tasks"].items()]
  return list(dict.fromkeys(task for task, m in metrics if "num_edges" in m))


@dataclasses.dataclass(frozen=True)
class ModelGroup:
  """Runs that differ by seed alone; tuples are by seed."""

  name: str  # `grid.Run.model`.
  width: int
  density: float
  variant: str
  activation_fraction: float
  eval_losses: tuple[float, ...]  # Held-out, in nats a token.
  metrics: tuple[Mapping[str, Record], ...]  # Of every task.
  target: float  # Task loss that circuits are cut to, in nats a side.
  tokens: int  # That each run was trained on.
  runs: tuple[str, ...]

  @property
  def is_dense(self) -> bool:
    return self.density == 1

  @property
  def loss(self) -> float:
    """Mean held-out loss over seeds, in nats a token."""
    return float(np.mean(self.eval_losses))

  @property
  def passed(self) -> frozenset[str]:
    return frozenset(filter(self.passes, self.metrics[0]))

  def passes(self, task: str) -> bool:
    """Whether all seeds have a circuit of the task that meets the target."""
    of_task = [seed.get(task, {}) for seed in self.metrics]
    return all(m.get("learned") and m.get("meets_target") for m in of_task)

  def has_sizes(self, task: str) -> bool:
    """Whether it passes a task and every size of its circuits is known."""
    return self.passes(task) and not np.isnan(self.log_sizes([task])).any()

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


def group_by_model(results: Sequence[Record]) -> list[ModelGroup]:
  """Returns the model groups that finished runs make, in their order."""
  groups = []
  for name in dict.fromkeys(r["model"] for r in results):
    runs = [r for r in results if r["model"] == name]
    settings = runs[0]["settings"]
    of = lambda kind, part: config_lib.from_dict(kind, settings[part])
    sparsity = of(config_lib.SparsityConfig, "sparsity")
    shared = {k: runs[0][k] for k in ("width", "density", "variant", "tokens")}
    groups.append(
      ModelGroup(
        name,
        **shared,
        activation_fraction=sparsity.activation_fraction,
        eval_losses=tuple(r["eval_loss"] for r in runs),
        metrics=tuple(r["tasks"] for r in runs),
        target=of(config_lib.PruneConfig, "prune").target_per_side,
        runs=tuple(r["name"] for r in runs),
      )
    )
  return groups


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
  model: ModelGroup, size: str, tasks: Sequence[str]
) -> dict[str, float | None] | None:
  """Returns a model's geometric mean size over tasks, with its 90% interval.

  None where a size is unknown or no task is given.
  """
  (logs_SxT,) = model.log_sizes(tasks, [size])
  if not logs_SxT.size or np.isnan(logs_SxT).any():
    return None
  seeds_RxS, tasks_RxT = bootstrap.draw_indices(logs_SxT.shape, 0)
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


def ratio_at_matched_loss(
  dense: Sequence[ModelGroup], sparse: ModelGroup
) -> dict[str, Any]:
  """Returns how many times larger dense circuits are at a sparse model's loss.

  Dense sizes are interpolated between the two neighbouring dense models that
  enclose the loss, linearly in log size over log loss, task by task. The ratio
  is the geometric mean over the tasks that all three pass. The bootstrap
  resamples the tasks and each model's seeds and interpolates anew, between all
  dense models that pass these tasks; draws that no two of them enclose are left
  out, `outside` is their share.

  Returns:
    By size `ratios`, each with `value`, `low` and `high`; None, and then `why`.
    `_on_test`: over the tasks whose circuits meet the target on test pairs too;
    `_with_edges`: over those whose circuits all have an edge; `_of_smallest`:
    with the smallest circuit of a model's seeds, so that one failed search does
    not decide. The number of `seeds` of the three; `by_seed`: the ratio of
    edges of each sparse seed alone, None outside the dense range; `left_out`:
    by task, the models that do not pass it.
  """
  result: dict[str, Any] = {"model": sparse.name, "loss": sparse.loss}
  result |= {f"tasks{of}": [] for of in ("", "_on_test", "_with_edges")}
  result |= {"by_seed": [], "left_out": {}}
  for of in ("", "_on_test", "_with_edges", "_of_smallest"):
    result[f"ratios{of}"] = dict.fromkeys(SIZES)
  rising = sorted(dense, key=lambda m: m.loss)
  for better, worse in itertools.pairwise(rising):
    if better.loss <= sparse.loss <= worse.loss:
      break
  else:  # Nothing is extrapolated.
    losses = [f"{m.loss:.3f}" for m in rising]
    span = f"{losses[0]} to {losses[-1]}" if losses else "none"
    why = f"loss {sparse.loss:.3f} outside the dense models' ({span})"
    return result | {"why": why}
  three = (worse, better, sparse)
  names = sorted(set().union(*(m.metrics[0] for m in three)))
  without = {t: [m.name for m in three if not m.has_sizes(t)] for t in names}
  some_pass = [t for t in names if any(m.passes(t) for m in three)]
  tasks = [t for t in names if not without[t]]
  result |= {
    "between": [worse.name, better.name],
    "seeds": [len(m.eval_losses) for m in three],
    "tasks": tasks,
    "left_out": {t: without[t] for t in some_pass if without[t]},
  }
  if not tasks:
    return result | {"why": "no task that all three models pass"}

  def measured(tasks):
    # In a draw other dense models may be the neighbours.
    models = [m for m in dense if all(map(m.has_sizes, tasks))] + [sparse]
    losses = [np.array(m.eval_losses) for m in models]
    return losses, [m.log_sizes(tasks) for m in models]

  losses, logs = measured(tasks)
  result["ratios"], result["outside"], result["by_seed"] = _ratios(losses, logs)
  losses = [x.mean(keepdims=True) for x in losses]
  smallest = [x.min(1, keepdims=True) for x in logs]
  result["ratios_of_smallest"], *_ = _ratios(losses, smallest)
  keep = {
    "on_test": lambda model, circuit: circuit["test_loss"] <= model.target,
    "with_edges": lambda model, circuit: circuit["num_edges"] > 0,
  }
  of_three = [(m, seed) for m in three for seed in m.metrics]
  for name, holds in keep.items():
    some = [t for t in tasks if all(holds(m, seed[t]) for m, seed in of_three)]
    result[f"tasks_{name}"] = some
    if some:
      result[f"ratios_{name}"], *_ = _ratios(*measured(some))
  return result


def _ratios(losses, logs):
  """Returns the ratios by size, the share of draws left out, edges by seed.

  Of losses `[S]` and log sizes `[K, S, T]` of the dense models, and of the
  sparse one last.
  """

  def log_ratios(seeds, tasks_RxT):
    """[K, R], NaN where no two dense models enclose the sparse one's loss."""
    models = list(zip(losses, logs, seeds, strict=True))
    loss_RxM = np.log(np.stack([x[s].mean(1) for x, _, s in models], 1))
    drawn = [x[:, s[:, :, None], tasks_RxT[:, None]] for _, x, s in models]
    size_KxRxM = np.stack([x.mean((2, 3)) for x in drawn], 2)
    rising_RxM = loss_RxM[:, :-1].argsort(1)
    ratios_KxR = [
      [
        np.interp(x_M[-1], x_M[i], y_M[i], np.nan, np.nan) - y_M[-1]
        for x_M, y_M, i in zip(loss_RxM, y_RxM, rising_RxM, strict=True)
      ]
      for y_RxM in size_KxRxM
    ]
    return np.array(ratios_KxR)

  counts = *map(len, losses), logs[-1].shape[2]
  *seeds, tasks_RxT = bootstrap.draw_indices(counts, 0)
  draws_KxR = log_ratios(seeds, tasks_RxT)
  inside_R = ~np.isnan(draws_KxR[0])
  *every_seed, every_task = (np.tile(range(n), (counts[-2], 1)) for n in counts)
  whole_K = log_ratios(every_seed, every_task)[:, 0]
  each_seed = every_seed[-1].T[:, :1]
  by_seed = np.exp(log_ratios([*every_seed[:-1], each_seed], every_task)[0])
  ratios = {
    size: _exp_interval(value, draws_R[inside_R])
    for size, value, draws_R in zip(SIZES, whole_K, draws_KxR, strict=True)
  }
  edges = [None if np.isnan(ratio) else float(ratio) for ratio in by_seed]
  return ratios, float(1 - inside_R.mean()), edges


def best(ratios: Sequence[Record]) -> Record | None:
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


def beside_base(results: Sequence[Record]) -> list[dict[str, Any]]:
  """Returns every variant's run beside its base: the one without the variant.

  `above`: by how much its loss is higher than the base's; `edges`: over the
  base's, geometric mean over the `tasks` that both pass, None without any;
  `passed`: how many it and the base pass. No row without a finished base.
  """
  key = lambda r: (r["width"], r["density"], r["seed"])
  bases = {key(r): r for r in results if not r["variant"]}
  rows = []
  for result in results:
    if not result["variant"] or key(result) not in bases:
      continue
    mine, base = (group_by_model([r])[0] for r in (result, bases[key(result)]))
    tasks = sorted(mine.passed & base.passed)
    logs, base_logs = (m.log_sizes(tasks, ["num_edges"]) for m in (mine, base))
    rows.append(
      {
        "variant": result["variant"],
        "seed": result["seed"],
        "loss": mine.loss,
        "above": mine.loss - base.loss,
        "tasks": tasks,
        "edges": float(np.exp(np.mean(logs - base_logs))) if tasks else None,
        "passed": (len(mine.passed), len(base.passed)),
      }
    )
  return rows


def compare_runs(
  results: Sequence[Record], contenders: Sequence[str] = ()
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
  accepted = {"", *contenders}
  frontier = dense_curve + [m for m in sparse if m.variant in accepted]
  names = {m.name for m in frontier}
  common = common_tasks(frontier)
  ratios = [
    ratio_at_matched_loss(dense_curve, m)
    | {"with_all_dense": ratio_at_matched_loss(dense, m)["ratios"]["num_edges"]}
    for m in sparse
  ]
  return {
    "common_tasks": common,
    "models": [
      {
        **{k: v for k, v in vars(m).items() if k not in ("metrics", "target")},
        "on_frontier": m.name in names,
        "eval_loss": m.loss,
        "passed": sorted(m.passed),
        "sizes": {
          size: mean_size(m, size, common) if m.passed >= {*common} else None
          for size in SIZES
        },
      }
      for m in models
    ],
    "ratios": ratios,
    "best": best([r for r in ratios if r["model"] in names]),
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
    return tables.MISSING
  value, low, high = (estimate[k] for k in ("value", "low", "high"))
  return f"{value:.3g}" + ("" if low is None else f" [{low:.3g}, {high:.3g}]")
