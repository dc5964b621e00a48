"""One prompt: which circuit decides its next token, and how.

A circuit decides if its two answers hold the model's own next token, it prefers
that answer by itself, and the model without it does so less. How: what each of
its nodes holds at the position where it matters most, and what the decision is
without it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

_NUM_TOP = 5


@dataclasses.dataclass(frozen=True)
class Influence:
  """What one circuit says of a prompt; diffs are logit differences in nats.

  Attributes:
    task: the circuit's task.
    answers: texts of its two answers, the likelier one first.
    mass: the model's probability of the two together.
    full_difference: first answer's logit minus the second's, whole model.
    circuit_difference: the same of the circuit alone, as it is calibrated.
    without_difference: the same of the model without the circuit.
    has_top: whether the model's most likely next token is one of the answers.
  """

  task: str
  answers: tuple[str, str]
  mass: float
  full_difference: float
  circuit_difference: float
  without_difference: float
  has_top: bool

  @property
  def effect(self) -> float:
    """How much of the model's preference goes with the circuit, in nats."""
    return self.full_difference - self.without_difference

  @property
  def decides(self) -> bool:
    """Whether the circuit makes the model's choice here."""
    return self.has_top and self.circuit_difference > 0 and self.effect > 0


@dataclasses.dataclass(frozen=True)
class Part:
  """What one node of a circuit does on a prompt.

  Attributes:
    node: "0.attn.q:3".
    position: where its value is furthest from its ablation value.
    token: the prompt's token there.
    value: its value there, in the circuit.
    ablated: its ablation value.
    worth: the circuit's diff minus that without the node, in nats.
  """

  node: str
  position: int
  token: str
  value: float
  ablated: float
  worth: float


def answer_pairs(circuit: circuit_lib.Circuit) -> list[tuple[str, str]]:
  """Returns the answers of a circuit's examples, each pair once.

  Raises:
    InputError: if it has none: then nothing says what it decides between.
  """
  examples = circuit.details.get("examples") or ()
  try:
    found = dict.fromkeys((e["answer"], e["counter_answer"]) for e in examples)
  except (KeyError, TypeError) as e:
    raise errors.InputError(
      f"circuit of {circuit.task}: its examples have no {e}; need a circuit"
      " that the search saved"
    ) from e
  if not found:
    raise errors.InputError(
      f"circuit of {circuit.task} has no examples; need a circuit that the"
      " search saved"
    )
  return list(found)


def top_tokens(
  model: transformer.Model, params: transformer.Params, tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (the model's most likely next tokens, all probabilities `[V]`)."""
  batch = jnp.asarray(tokens, jnp.int32)[None]
  logits = jax.jit(model.apply)(params, batch)[0, -1]
  probabilities = np.asarray(jax.nn.softmax(logits))
  return np.argsort(-probabilities, kind="stable")[:_NUM_TOP], probabilities


def influence(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  tokenizer,
  tokens: Sequence[int],
) -> tuple[Influence, sequences_lib.Sequences]:
  """Returns what a circuit says of a prompt, and the prompt as a sequence.

  Of several pairs of answers the one that the model finds likeliest counts.

  Args:
    model: the model it was cut from.
    params: its parameters.
    circuit: the circuit.
    tokenizer: the model's.
    tokens: of the prompt, at least one.

  Raises:
    InputError: if the circuit's answers are unknown or are no single tokens.
  """
  top, probabilities = top_tokens(model, params, tokens)
  pairs = []
  for texts in answer_pairs(circuit):
    ids = [tokenizer.single_token(text) for text in texts]
    if None in ids:
      raise errors.InputError(
        f"circuit of {circuit.task}: its answer {texts[ids.index(None)]!r} is"
        " no single token of the model's tokenizer; need the model it was cut"
        " from"
      )
    pairs.append(sorted(ids, key=lambda i: -probabilities[i]))
  correct, incorrect = max(pairs, key=lambda ids: probabilities[ids].sum())
  sequence = sequences_lib.Sequences(
    tokens=jnp.asarray(tokens, jnp.int32)[None],
    positions=jnp.array([len(tokens) - 1]),
    correct=jnp.array([correct]),
    incorrect=jnp.array([incorrect]),
  )
  kept = {n: jnp.asarray(m) for n, m in circuit.node_mask.items()}
  diff = _difference_function(model, circuit)
  full, alone, without = (
    diff(params, sequence, gates)
    for gates in (
      jax.tree.map(jnp.ones_like, kept),
      kept,
      jax.tree.map(jnp.logical_not, kept),
    )
  )
  sign = logit_difference_lib.answer_sign(sequence.correct, sequence.incorrect)
  fitted = logit_difference_lib.Calibration(
    circuit.logit_scale, circuit.details.get("answer_shift", 0.0)
  )
  return (
    Influence(
      task=circuit.task,
      answers=tuple(tokenizer.token_text(int(i)) for i in (correct, incorrect)),
      mass=float(probabilities[[correct, incorrect]].sum()),
      full_difference=float(full),
      circuit_difference=float(
        logit_difference_lib.calibrate(alone, sign[0], fitted)
      ),
      without_difference=float(without),
      has_top=int(top[0]) in (correct, incorrect),
    ),
    sequence,
  )


def _difference_function(model, circuit):
  means = {n: jnp.asarray(m) for n, m in circuit.means.items()}

  @jax.jit
  def diff(params, sequence, gates):
    hook = hooks.circuit_hook(
      model,
      params,
      sequence.tokens,
      sequence.positions,
      gates,
      means,
      circuit.freeze_norms,
    )
    return logit_difference_lib.logit_difference(model, params, sequence, hook)[
      0
    ]

  return diff


def _record(model, params, circuit, tokens) -> dict[str, jax.Array]:
  """Returns the values at all sites, `[1, L, width]`, in the circuit."""

  @jax.jit
  def run(params, tokens):
    acts: dict[str, jax.Array] = {}
    hook = hooks.compose(circuit.hook(params, tokens), hooks.record(acts))
    model.residual(params, tokens, hook)
    return acts

  return run(params, tokens)


def deciding(found: Sequence[Influence]) -> Influence | None:
  """Returns the circuit that decides, the largest effect first; or None."""
  return max(
    (i for i in found if i.decides), key=lambda i: i.effect, default=None
  )


def nearest(found: Sequence[Influence]) -> Influence | None:
  """Returns the circuit that decides between the likeliest answers; or None.

  Where no circuit has the model's next token among its answers, one may still
  make the model's choice between its own two.
  """
  makes = (i for i in found if i.circuit_difference > 0 and i.effect > 0)
  return max(makes, key=lambda i: i.mass, default=None)


def parts(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  tokenizer,
  sequence: sequences_lib.Sequences,
) -> list[Part]:
  """Returns what each node does on a prompt, the most needed first.

  Exact leave-one-out within the circuit, with its fitted scale.
  """
  tokens = np.asarray(sequence.tokens[0])
  acts = _record(model, params, circuit, sequence.tokens)
  diff = _difference_function(model, circuit)
  kept = {n: np.asarray(m) for n, m in circuit.node_mask.items()}
  whole = float(diff(params, sequence, kept))
  found = []
  for name, mask in kept.items():
    for row, index in zip(*np.nonzero(mask), strict=True):
      site = sites.site_id(name, int(row))
      value_L = np.asarray(acts[site][0, :, index])
      ablated = float(circuit.means[name][row, index])
      position = int(np.argmax(np.abs(value_L - ablated)))
      without = {n: m.copy() for n, m in kept.items()}
      without[name][row, index] = False
      lost = whole - float(diff(params, sequence, without))
      found.append(
        Part(
          node=f"{site}:{index}",
          position=position,
          token=tokenizer.token_text(int(tokens[position])),
          value=float(value_L[position]),
          ablated=ablated,
          worth=circuit.logit_scale * lost,
        )
      )
  return sorted(found, key=lambda part: -abs(part.worth))


def attention_of(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  tokens: jax.Array,
) -> dict[str, np.ndarray]:
  """Returns where kept heads look from the last position, by "layer.head".

  Each `[L]`, less what the sink takes; in the circuit.

  Args:
    model: the model.
    params: its parameters.
    circuit: the circuit.
    tokens: int `[1, L]`.
  """
  config = model.config
  acts = _record(model, params, circuit, tokens)
  pattern = np.asarray(hooks.attention_patterns(model, params, acts))
  value = circuit.node_mask.get("attn.v")
  if value is None:
    return {}
  kept = np.asarray(value).reshape(config.n_layer, config.n_head, -1).any(-1)
  return {
    f"{layer}.{head}": pattern[layer, 0, -1, head]
    for layer, head in zip(*np.nonzero(kept), strict=True)
  }


def to_dict(
  found: Sequence[Influence],
  chosen: Influence | None,
  of_chosen: Sequence[Part],
) -> dict[str, Any]:
  """Returns plain values, fit for JSON."""
  rows: list[Mapping[str, Any]] = [
    dataclasses.asdict(i) | {"effect": i.effect, "decides": i.decides}
    for i in found
  ]
  return {
    "circuits": rows,
    "nodes_of": chosen.task if chosen else None,
    "nodes": [dataclasses.asdict(part) for part in of_chosen],
  }
