"""A candidate as a circuit: what is measured on test pairs, written down."""

from typing import Any

import jax
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint, hooks, transformer
from sparse_jax.pruning import edge_masks, thresholding
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib

_NUM_EXAMPLES = 6
_NUM_NOTED_TOKENS = 6


def to_circuit(
  evaluator: mask_evaluator.MaskEvaluator,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  splits: sequences_lib.Splits,
  best: thresholding.Candidate,
  essential: dict[str, np.ndarray] | None,
  details: dict[str, Any],
) -> circuit_lib.Circuit:
  """Returns a candidate as a circuit with its metrics on the test pairs.

  Args:
    evaluator: on validation prompts.
    task: names the circuit and the tokens of its examples.
    config: target and ablation.
    splits: the task's pairs.
    best: the candidate.
    essential: what `edge_masks.find_essential` returns.
    details: further contents of circuit.json.
  """
  model, params, test = evaluator.model, evaluator.params, splits.test
  kept = best.node_mask
  masks = [
    kept,
    evaluator.constant(1),
    {name: ~mask for name, mask in kept.items()},
  ]
  stacked = {name: np.stack([m[name] for m in masks]) for name in kept}
  diffs_3xS = evaluator.on(test).logit_differences(stacked)
  sign_S = logit_difference_lib.answer_sign(test.correct, test.incorrect)
  diffs = {
    "": logit_difference_lib.calibrate(diffs_3xS[0], sign_S, best.calibration),
    "full_model_": diffs_3xS[1],
    "without_circuit_": diffs_3xS[2],
  }
  metrics: dict[str, Any] = {
    "num_nodes": best.num_nodes,
    "num_edges": best.num_edges,
    **edges_lib.count_token_edges(
      params, kept, test.tokens, np.stack([test.correct, test.incorrect])
    ),
  }
  for prefix, diff_S in diffs.items():
    metrics[f"{prefix}test_loss"] = float(
      logit_difference_lib.task_loss(diff_S)
    )
    metrics[f"{prefix}test_accuracy"] = float(
      logit_difference_lib.task_accuracy(diff_S)
    )
  metrics |= {
    "validation_loss": best.validation_loss,
    "validation_accuracy_lost": best.validation_accuracy_lost,
    "meets_target": best.meets_target,
    "num_test_pairs": len(splits.pairs["test"]),
  }
  edges = edges_lib.find_edges(params, kept)
  if essential is not None:
    edge_masks.mark_edges(params, edges, essential)
    metrics |= edge_masks.essential_metrics(
      evaluator, kept, essential, test, config.shift_answers
    )
  return circuit_lib.Circuit(
    task=task.name,
    model_fingerprint=fingerprint.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation=config.ablation,
    freeze_norms=config.freeze_norms,
    target_loss=config.target_per_side,
    logit_scale=best.calibration.scale,
    node_mask=kept,
    means={name: np.asarray(mean) for name, mean in evaluator.means.items()},
    edges=edges,
    metrics=metrics,
    details={
      **details,
      "answer_shift": best.calibration.shift,
      "examples": examples(task, splits.pairs["test"], diffs),
      "node_notes": node_notes(params, task.tokenizer, kept),
    },
  )


def examples(
  task: tasks_lib.Task,
  pairs: tasks_lib.Pairs,
  diffs: dict[str, jax.Array],
) -> list[dict[str, Any]]:
  """Returns the first test pairs as token texts, with both models' answers."""
  texts = lambda ids: [task.tokenizer.token_text(int(t)) for t in ids]
  probability = {k: np.asarray(jax.nn.sigmoid(d)) for k, d in diffs.items()}
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
  params: transformer.Params, tokenizer, node_mask: hooks.SiteArrays
) -> dict[str, dict[str, Any]]:
  """Returns, by "site:index", the tokens a node reads or writes directly.

  Read nodes see a residual channel: the tokens of largest embedding weight in
  it. Write nodes add to one: the tokens of largest unembedding weight from it.
  """
  embed = np.asarray(edges_lib.parameter(params, sites.EMBED))
  tied = sites.UNEMBED.split("/")[0] not in params
  unembed = embed if tied else edges_lib.parameter(params, sites.UNEMBED)
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
