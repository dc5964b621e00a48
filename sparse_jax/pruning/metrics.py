"""A circuit and its figures: what is measured on test pairs, written down."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax import tasks as tasks_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import edge_masks, thresholding
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib

_NUM_EXAMPLES = 6
_NUM_NOTED_TOKENS = 6


def measure(
  judge: thresholding.Judge,
  task: tasks_lib.Task,
  config: config_lib.PruneConfig,
  test: sequences_lib.Sequences,
  test_pairs: tasks_lib.Pairs,
  best: thresholding.Candidate,
  needed: dict[str, np.ndarray] | None,
  details: dict[str, Any],
) -> circuit_lib.Circuit:
  """Returns a candidate as a circuit with its figures on the test pairs.

  Args:
    judge: of the task.
    task: the task.
    config: target and ablation.
    test: test pairs as sequences.
    test_pairs: the same with their texts.
    best: the candidate.
    needed: the edges that `edge_masks` found to be needed, or None.
    details: further contents of circuit.json.
  """
  model, params, means = judge.model, judge.params, judge.means
  # As arguments: what a program closes over, XLA would fold at compile time.
  difference_function = jax.jit(
    lambda params, means, test, gates: logit_difference_lib.logit_difference(
      model, params, test, judge.hook(params, test, gates, means)
    )
  )
  diff_of = lambda gates: difference_function(params, means, test, gates)
  kept = {name: jnp.asarray(mask) for name, mask in best.node_mask.items()}
  sign = logit_difference_lib.answer_sign(test.correct, test.incorrect)
  diffs = {
    "": logit_difference_lib.calibrate(diff_of(kept), sign, best.calibration),
    "full_model_": diff_of(jax.tree.map(jnp.ones_like, kept)),
    "without_circuit_": diff_of(jax.tree.map(jnp.logical_not, kept)),
  }
  figures: dict[str, Any] = {
    "num_nodes": best.num_nodes,
    "num_edges": best.num_edges,
    **edges_lib.count_token_edges(
      params,
      best.node_mask,
      test.tokens,
      np.stack([test.correct, test.incorrect]),
    ),
  }
  for prefix, diff in diffs.items():
    figures[f"{prefix}test_loss"] = float(logit_difference_lib.task_loss(diff))
    figures[f"{prefix}test_accuracy"] = float(
      logit_difference_lib.task_accuracy(diff)
    )
  figures |= {
    "validation_loss": best.loss,
    "meets_target": best.meets_target,
    "num_test_pairs": len(test_pairs),
  }
  edges = edges_lib.find_edges(params, best.node_mask)
  if needed is not None:
    edge_masks.mark_edges(edges, needed)
    figures |= dataclasses.asdict(
      edge_masks.measure(judge, best.node_mask, needed, test)
    )
  return circuit_lib.Circuit(
    task=task.name,
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation=config.ablation,
    freeze_norms=config.freeze_norms,
    target_loss=config.target_per_side,
    logit_scale=best.calibration.scale,
    node_mask=best.node_mask,
    means={name: np.asarray(mean) for name, mean in means.items()},
    edges=edges,
    metrics=figures,
    details={
      **details,
      "answer_shift": best.calibration.shift,
      "examples": examples(task, test_pairs, diffs),
      "node_notes": node_notes(params, task.tokenizer, best.node_mask),
    },
  )


def examples(
  task: tasks_lib.Task,
  pairs: tasks_lib.Pairs,
  diffs: dict[str, jax.Array],
) -> list[dict[str, Any]]:
  """Returns the first test pairs as token texts, with both models' answers."""
  texts = lambda ids: [task.tokenizer.token_text(int(t)) for t in ids]
  probability = {k: np.asarray(jax.nn.sigmoid(g)) for k, g in diffs.items()}
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
