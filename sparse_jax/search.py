"""From a model and a task to the smallest circuit: many prunings at once.

All runs of a grid (coefficients × seeds) are one vmapped program over shared
weights. Each is discretised on validation pairs; the smallest circuit that
meets the target wins; the saved figures come from test pairs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import checkpoint, evaluate, metrics, prune, sites, taps
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import model as model_lib
from sparse_jax import tasks as tasks_lib

_STEPS_PER_CALL = 20
_COUNTS_PER_CALL = 8
_LENGTH_MULTIPLE = 16
_IMPORTANCE_PAIRS = 32

# Per site `[masks, layers, width]` -> (losses, logit scales), each `[masks]`.
LossesOfMasks = Callable[[prune.SiteArrays], tuple[Any, Any]]


def task_sequences(
  pairs: tasks_lib.Pairs, length: int | None = None
) -> prune.Sequences:
  """Returns both sides of the pairs as device arrays, padded to `length`."""
  sequences = prune.Sequences(*map(jnp.asarray, pairs.sequences()))
  missing = max(0, (length or 0) - sequences.tokens.shape[1])
  tokens = jnp.pad(sequences.tokens, ((0, 0), (0, missing)))
  return sequences._replace(tokens=tokens)


@dataclasses.dataclass(frozen=True)
class Splits:
  """A task's pairs, as sequences.

  Attributes:
    train: pairs that masks are fitted on.
    fit: as many of them as there are validation pairs: for the logit scale.
    validation: pairs that choose size and run.
    test: pairs that the figures are measured on.
    test_pairs: the same with their texts.
  """

  train: prune.Sequences
  fit: prune.Sequences
  validation: prune.Sequences
  test: prune.Sequences
  test_pairs: tasks_lib.Pairs


def make_splits(
  task: tasks_lib.Task, config: config_lib.PruneConfig, seed: int
) -> Splits:
  """Returns the task's pairs for pruning."""
  counts = {
    "train": config.num_train,
    "validation": config.num_validation,
    "test": config.num_test,
  }
  pairs = {s: task.pairs(s, count=n, seed=seed) for s, n in counts.items()}
  # One length for all splits and most tasks, so that programs are shared.
  longest = max(p.prompts.shape[1] for p in pairs.values())
  length = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
  sequences = {s: task_sequences(p, length) for s, p in pairs.items()}
  num_fit = min(config.num_train, config.num_validation)
  rows = np.r_[0:num_fit, config.num_train : config.num_train + num_fit]
  return Splits(
    **sequences,
    fit=prune.Sequences(*(x[rows] for x in sequences["train"])),
    test_pairs=pairs["test"],
  )


def judge_task(
  gap_function: evaluate.GapFunction,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  seed: int,
) -> tasks_lib.Verdict:
  """Returns whether the full model does the task well enough to prune it.

  Judged on validation pairs: test pairs are for the saved figures alone.
  """
  pairs = task.pairs("validation", count=config.num_validation, seed=seed)
  score = evaluate.score_pairs(gap_function, pairs)
  return tasks_lib.judge(
    score.loss.value, score.accuracy.value, config.target_per_side
  )


def ablation_values(
  model: model_lib.Model,
  params: model_lib.Params,
  config: config_lib.PruneConfig,
  pretrain_means: prune.SiteArrays,
  sequences: prune.Sequences,
) -> dict[str, jax.Array]:
  """Returns what closed nodes take, per gated site `[layers, width]`."""
  if config.ablation == "mean_task":
    means = prune.task_means(model, params, sequences)
  elif config.ablation == "zero":
    means = jax.tree.map(jnp.zeros_like, dict(pretrain_means))
  else:
    means = pretrain_means
  return {name: means[name] for name in config.sites}


def train_masks(
  model: model_lib.Model,
  params: model_lib.Params,
  means: prune.SiteArrays,
  sequences: prune.Sequences,
  config: config_lib.PruneConfig,
  settings: prune.Setting,
  seed: int,
  description: str,
) -> prune.PruneState:
  """Trains every run's masks; returns states with a leading axis of runs."""
  steps = config.steps
  init = functools.partial(
    prune.init_prune, model.config, config.sites, steps=steps
  )
  states = jax.jit(jax.vmap(init))(settings)
  step = jax.vmap(
    functools.partial(prune.prune_step, model, steps),
    in_axes=(0, None, None, None, 0),
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(states, params, means, batches, settings):
    body = lambda s, batch: step(s, params, means, batch, settings)
    states, logs = jax.lax.scan(body, states, batches)
    return states, jax.tree.map(lambda x: x[-1], logs)

  rng = np.random.default_rng(seed)
  num_pairs = len(sequences.tokens) // 2
  size = min(config.batch_size, num_pairs)
  with metrics.progress_bar(steps, 0, description) as bar:
    for start in range(0, steps, _STEPS_PER_CALL):
      n = min(_STEPS_PER_CALL, steps - start)
      rows = np.stack(
        [rng.choice(num_pairs, size, replace=False) for _ in range(n)]
      )
      rows = np.concatenate([rows, rows + num_pairs], 1)
      batches = prune.Sequences(*(x[rows] for x in sequences))
      states, logs = advance(states, params, means, batches, settings)
      bar.update(n)
      bar.set_postfix(
        loss=f"{float(jnp.min(logs['task_loss'])):.3f}",
        nodes=f"{int(jnp.min(logs['open_gates']))}",
      )
  return states


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One run's discretised circuit.

  Attributes:
    run: index of the run.
    node_mask: per site `[layers, width]` bool.
    num_nodes: nodes kept.
    num_edges: edges between them.
    scale: logit scale, fitted on training pairs.
    loss: validation task loss at that scale, in nats.
    meets_target: whether `loss` is at most the target.
  """

  run: int
  node_mask: dict[str, np.ndarray]
  num_nodes: int
  num_edges: int
  scale: float
  loss: float
  meets_target: bool


def mask_losses(
  model: model_lib.Model,
  params: model_lib.Params,
  means: prune.SiteArrays,
  masks: prune.SiteArrays,
  fit_on: prune.Sequences,
  measure_on: prune.Sequences,
) -> tuple[jax.Array, jax.Array]:
  """Returns (losses, scales) of several masks, each `[masks]`.

  Args:
    model: the model.
    params: its parameters.
    means: ablation values, per site `[layers, width]`.
    masks: per site `[masks, layers, width]`.
    fit_on: sequences the logit scale is fitted on.
    measure_on: sequences the loss is measured on.
  """

  def one(mask):
    tap = taps.gate(mask, means)
    scale = prune.fit_scale(prune.answer_gap(model, params, fit_on, tap))
    gap = prune.answer_gap(model, params, measure_on, tap)
    return prune.gap_loss(gap, scale), scale

  return jax.lax.map(one, masks)


def smallest_count(
  losses_of: Callable[[np.ndarray], np.ndarray], size: int, target: float
) -> int:
  """Returns the smallest number of nodes seen to meet the target.

  Sections several counts a pass, first evenly in the logarithm, then between
  the smallest count that met the target and the next smaller one tried. So it
  does not rest on the loss falling monotonically with the count; it returns
  `size` if no count tried meets the target.

  Args:
    losses_of: task losses of circuits of `_COUNTS_PER_CALL` sizes.
    size: the number of all nodes.
    target: in nats.
  """
  counts = np.geomspace(1, size, _COUNTS_PER_CALL).astype(int)
  low, high = 0, size
  while True:
    meets = losses_of(counts) <= target
    if meets.any():
      first = int(np.argmax(meets))
      high = int(counts[first])
      low = int(counts[first - 1]) if first else low
    elif counts[-1] == size:
      return size
    else:
      low = int(counts[-1])
    if high - low <= 1:
      return high
    inner = np.linspace(low, high, _COUNTS_PER_CALL + 2)[1:-1]
    counts = np.clip(inner.astype(int), low + 1, high - 1)


def discretise(
  params: model_lib.Params,
  shapes: Mapping[str, tuple[int, ...]],
  order: np.ndarray,
  losses_of_masks: LossesOfMasks,
  target: float,
  run: int,
) -> Candidate:
  """Keeps the first nodes of a total order that reach the target.

  Args:
    params: the model's parameters, for counting edges.
    shapes: per gated site `(layers, width)`.
    order: flat node indices, most needed first; nodes left out stay closed.
    losses_of_masks: `mask_losses` of masks, all else bound.
    target: in nats, mean over both sides.
    run: index of the run.
  """
  seen: dict[int, tuple[float, float]] = {}

  def losses_of(counts):
    losses, scales = losses_of_masks(
      prune.masks_of_order(shapes, order, counts)
    )
    values = np.asarray(losses), np.asarray(scales)
    for count, loss, scale in zip(counts, *values, strict=True):
      seen[int(count)] = float(loss), float(scale)
    return values[0]

  count = smallest_count(losses_of, len(order), target)
  loss, scale = seen[count]
  masks = prune.masks_of_order(shapes, order, [count])
  node_mask = {name: mask[0] for name, mask in masks.items()}
  return Candidate(
    run=run,
    node_mask=node_mask,
    num_nodes=count,
    num_edges=circuit_lib.count_edges(params, node_mask),
    scale=scale,
    loss=loss,
    meets_target=loss <= target,
  )


def importance_order(
  node_mask: Mapping[str, np.ndarray], losses_of_masks: LossesOfMasks
) -> np.ndarray:
  """Returns a circuit's nodes, as flat indices, by what each one is worth.

  A node's worth is the loss of the circuit without it, its logit scale fitted
  again: exact leave-one-out. τ is a poorer guide among the last nodes: it
  saturates, and masks are trained for a cost per node and not for a target.
  """
  sizes = {name: mask.size for name, mask in node_mask.items()}
  flat = np.concatenate([np.ravel(node_mask[name]) for name in sizes])
  nodes = np.flatnonzero(flat)
  without = np.repeat(flat[None], len(nodes), 0)
  without[np.arange(len(nodes)), nodes] = False
  worth = []
  for start in range(0, len(nodes), _COUNTS_PER_CALL):
    rows = without[start : start + _COUNTS_PER_CALL]
    padded = np.resize(rows, (_COUNTS_PER_CALL, len(flat)))
    parts = np.split(padded, np.cumsum(list(sizes.values()))[:-1], axis=1)
    masks = {
      name: part.reshape(-1, *node_mask[name].shape)
      for name, part in zip(sizes, parts, strict=True)
    }
    losses, _ = losses_of_masks(masks)
    worth.append(np.asarray(losses)[: len(rows)])
  return nodes[np.argsort(-np.concatenate(worth), kind="stable")]


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
  """Returns the fewest edges that meet the target, else the lowest loss."""
  return min(
    candidates,
    key=lambda c: (
      not c.meets_target,
      (c.num_edges, c.num_nodes) if c.meets_target else (c.loss, 0),
    ),
  )


def clean_up(
  params: model_lib.Params,
  candidate: Candidate,
  splits: Splits,
  means: prune.SiteArrays,
  losses_fn: Callable[..., tuple[Any, Any]],
  target: float,
) -> Candidate:
  """Drops the nodes that are worth least while the target is still met.

  Args:
    params: the model's parameters.
    candidate: what discretising left.
    splits: the task's sequences; worth is measured on training pairs, the
      target on validation pairs.
    means: ablation values.
    losses_fn: compiled `mask_losses`, the model bound.
    target: in nats, mean over both sides.

  Returns:
    The smaller circuit, or `candidate` where nothing can go.
  """
  if not candidate.meets_target:
    return candidate
  num_pairs = len(splits.fit.tokens) // 2
  few = min(_IMPORTANCE_PAIRS, num_pairs)
  rows = np.r_[0:few, num_pairs : num_pairs + few]
  some = prune.Sequences(*(x[rows] for x in splits.fit))
  order = importance_order(
    candidate.node_mask,
    lambda masks: losses_fn(params, means, masks, some, some),
  )
  cleaned = discretise(
    params,
    {name: mask.shape for name, mask in candidate.node_mask.items()},
    order,
    lambda masks: losses_fn(
      params, means, masks, splits.fit, splits.validation
    ),
    target,
    candidate.run,
  )
  return best_candidate([candidate, cleaned])


def find_circuit(
  model: model_lib.Model,
  params: model_lib.Params,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  pretrain_means: prune.SiteArrays,
  seed: int,
) -> circuit_lib.Circuit:
  """Prunes a model to the smallest circuit that the grid finds for a task.

  Args:
    model: the model.
    params: its parameters.
    task: the task.
    config: grid, target and numbers of pairs.
    pretrain_means: `prune.mean_activations` over pretraining windows.
    seed: of pairs, masks and batches.
  """
  splits = make_splits(task, config, seed)
  means = ablation_values(model, params, config, pretrain_means, splits.train)
  settings = prune.settings_grid(config, seed)
  states = train_masks(
    model,
    params,
    means,
    splits.train,
    config,
    settings,
    seed,
    f"pruning {task.name}",
  )
  losses_fn = jax.jit(functools.partial(mask_losses, model))
  losses_of_masks = lambda masks: losses_fn(
    params, means, masks, splits.fit, splits.validation
  )
  target = config.selection_margin * config.target_per_side
  shapes = {name: tau.shape[1:] for name, tau in states.tau.items()}
  num_runs = len(settings.k_coef)
  candidates = []
  with metrics.progress_bar(
    num_runs + 1, 0, f"discretising {task.name}"
  ) as bar:
    for run in range(num_runs):
      state = jax.tree.map(lambda x, i=run: x[i], states)
      order = prune.node_order(state)
      candidates.append(
        discretise(params, shapes, order, losses_of_masks, target, run)
      )
      bar.update()
    best = clean_up(
      params, best_candidate(candidates), splits, means, losses_fn, target
    )
    bar.update()
  runs = [
    {
      "k_coef": float(settings.k_coef[c.run]),
      "seed": int(settings.seed[c.run]),
      "num_nodes": c.num_nodes,
      "num_edges": c.num_edges,
      "validation_loss": c.loss,
      "meets_target": c.meets_target,
    }
    for c in candidates
  ]
  return measure(model, params, task, config, means, splits, best, runs)


def measure(
  model: model_lib.Model,
  params: model_lib.Params,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  means: prune.SiteArrays,
  splits: Splits,
  best: Candidate,
  runs: list[dict[str, Any]],
) -> circuit_lib.Circuit:
  """Returns the candidate as a circuit with its figures on the test pairs."""
  gap_of = jax.jit(
    lambda gates: prune.answer_gap(
      model, params, splits.test, taps.gate(gates, means)
    )
  )
  kept = {name: jnp.asarray(mask) for name, mask in best.node_mask.items()}
  gaps = {
    "": best.scale * gap_of(kept),
    "full_model_": gap_of(jax.tree.map(jnp.ones_like, kept)),
    "without_circuit_": gap_of(jax.tree.map(jnp.logical_not, kept)),
  }
  figures: dict[str, Any] = {
    "num_nodes": best.num_nodes,
    "num_edges": best.num_edges,
    **circuit_lib.count_token_edges(
      params,
      best.node_mask,
      splits.test.tokens,
      np.stack([splits.test.right, splits.test.wrong]),
    ),
  }
  for prefix, gap in gaps.items():
    figures[f"{prefix}test_loss"] = float(prune.gap_loss(gap))
    figures[f"{prefix}test_accuracy"] = float(prune.gap_accuracy(gap))
  figures |= {
    "validation_loss": best.loss,
    "meets_target": best.meets_target,
    "num_test_pairs": len(splits.test_pairs),
  }
  return circuit_lib.Circuit(
    task=task.name,
    model_fingerprint=checkpoint.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation=config.ablation,
    target_loss=config.target_per_side,
    logit_scale=best.scale,
    node_mask=best.node_mask,
    means={name: np.asarray(mean) for name, mean in means.items()},
    edges=circuit_lib.find_edges(params, best.node_mask),
    metrics=figures,
    details={
      "runs": runs,
      "examples": examples(task, splits.test_pairs, gaps),
      "node_notes": node_notes(params, task.tokenizer, best.node_mask),
    },
  )


_NUM_EXAMPLES = 6
_NUM_NOTED_TOKENS = 6


def examples(
  task: tasks_lib.Task,
  pairs: tasks_lib.Pairs,
  gaps: dict[str, jax.Array],
) -> list[dict[str, Any]]:
  """Returns the first test pairs as token texts, with both models' answers."""
  texts = lambda ids: [task.tokenizer.token_text(int(t)) for t in ids]
  probability = {k: np.asarray(jax.nn.sigmoid(g)) for k, g in gaps.items()}
  return [
    {
      "prompt_tokens": texts(pairs.prompts[i][: pairs.lengths[i]]),
      "answer": texts([pairs.answers[i]])[0],
      "counter_prompt_tokens": texts(
        pairs.counter_prompts[i][: pairs.counter_lengths[i]]
      ),
      "counter_answer": texts([pairs.counter_answers[i]])[0],
      "circuit_prob": float(probability[""][i]),
      "full_prob": float(probability["full_model_"][i]),
      "counter_circuit_prob": float(probability[""][i + len(pairs)]),
      "counter_full_prob": float(probability["full_model_"][i + len(pairs)]),
    }
    for i in range(min(_NUM_EXAMPLES, len(pairs)))
  ]


def node_notes(
  params: model_lib.Params, tokenizer, node_mask: prune.SiteArrays
) -> dict[str, dict[str, Any]]:
  """Returns, by "site:index", the tokens a node reads or writes directly.

  Read nodes see a residual channel: the tokens of largest embedding weight in
  it. Write nodes add to one: the tokens of largest unembedding weight from it.
  """
  embed = np.asarray(circuit_lib.parameter(params, sites.EMBED))
  tied = sites.UNEMBED.split("/")[0] not in params
  unembed = embed if tied else circuit_lib.parameter(params, sites.UNEMBED)
  sides = {
    "read_tokens": (("attn.act_in", "mlp.act_in"), embed),
    "write_tokens": (
      ("attn.resid_delta", "mlp.resid_delta"),
      np.asarray(unembed),
    ),
  }
  notes = {}
  for key, (names, table) in sides.items():
    for name in names:
      for row, index in zip(
        *np.nonzero(node_mask.get(name, [[]])), strict=True
      ):
        column = table[:, index]
        top = np.argsort(-np.abs(column), kind="stable")[:_NUM_NOTED_TOKENS]
        notes[f"{sites.site_id(name, int(row))}:{index}"] = {
          key: [
            (tokenizer.token_text(int(t)), float(column[t]))
            for t in top
            if column[t]
          ]
        }
  return notes
