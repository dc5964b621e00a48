"""One prompt: which circuit decides its next token, and how.

A circuit decides if its two answers hold the model's own next token, it prefers
that answer by itself, and the model without it does so less. How: what each of
its nodes holds at the position where it matters most, and what the decision is
without it.
"""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import mask_evaluator
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, tables

_NUM_TOP = 5
# What a notebook shows of an explanation.
_NUM_SHOWN, _NUM_LOOKS = 12, 3


@dataclasses.dataclass(frozen=True)
class Influence:
  """What one circuit says of a prompt.

  A difference is the first answer's logit minus the second's, in nats.
  """

  task: str
  answers: tuple[str, str]  # The circuit's two, the likelier one first.
  mass: float  # The model's probability of the two together.
  full_difference: float  # Of the whole model.
  circuit_difference: float  # Of the circuit alone, as it is calibrated.
  without_difference: float  # Of the model without the circuit.
  has_top: bool  # Whether the model's likeliest next token is an answer.

  @property
  def effect(self) -> float:
    """How much of the model's preference goes with the circuit, in nats."""
    return self.full_difference - self.without_difference

  @property
  def chooses(self) -> bool:
    """Whether the circuit makes the model's choice between its answers."""
    return self.circuit_difference > 0 and self.effect > 0

  @property
  def decides(self) -> bool:
    """Whether that choice is the model's next token."""
    return self.has_top and self.chooses


@dataclasses.dataclass(frozen=True)
class Part:
  """What one node of a circuit does on a prompt."""

  node: str  # "0.attn.q:3".
  position: int  # Where its value is furthest from its ablation value.
  token: str  # The prompt's token there.
  value: float  # Its value there, in the circuit.
  ablated: float  # Its ablation value.
  importance: float  # The circuit's logit difference, less that without it.


@dataclasses.dataclass(frozen=True)
class Explanation:
  """A circuit on a prompt: what it says, and what shows how."""

  influence: Influence
  circuit: circuit_lib.Circuit
  evaluator: mask_evaluator.MaskEvaluator


@dataclasses.dataclass(frozen=True, repr=False)
class PromptExplanation:
  """What goes on behind one prompt's next token.

  It shows as a line of text, and as small tables in a notebook.
  """

  prompt: str
  tokens: tuple[str, ...]  # The prompt's, in quotes.
  # The model's likeliest next tokens in quotes, with their probabilities.
  next_tokens: tuple[tuple[str, float], ...]
  influences: tuple[Influence, ...]  # Of every circuit, as they were given.
  chosen: Influence  # Of the circuit that decides, or comes nearest.
  parts: tuple[Part, ...]  # Of that circuit, the most important first.
  # Where its heads look from the last token, `[L]` by "layer.head".
  attention: dict[str, np.ndarray]

  def __repr__(self) -> str:
    token, probability = self.next_tokens[0]
    verb = "decides" if self.chosen.decides else "comes nearest to deciding"
    return (
      f"{self.prompt!r} goes on with {token} ({probability:.0%});"
      f" {self.chosen.task} {verb}, for {self.chosen.answers[0]!r} over"
      f" {self.chosen.answers[1]!r}"
    )

  def _repr_html_(self) -> str:
    parts = [f"<p>{html.escape(repr(self))}</p>", self._influences_table()]
    if self.parts:
      parts.append(self._parts_table())
    if self.attention:
      parts.append(self._attention_table())
    return "".join(parts)

  def _influences_table(self) -> str:
    of = lambda i: (i.full_difference, i.circuit_difference, i.effect)
    return tables.html(
      ("circuit", "model", "circuit alone", "what goes with it"),
      [(i.task, *(f"{d:.2f}" for d in of(i))) for i in self.influences],
      "Logit difference between a circuit's two answers, in nats",
    )

  def _parts_table(self) -> str:
    rows = [
      (
        p.node,
        f"{p.importance:.2f}",
        f"{p.value:.3f}",
        f"{p.ablated:.3f}",
        f"{p.position} {self.tokens[p.position]}",
      )
      for p in self.parts[:_NUM_SHOWN]
    ]
    return tables.html(
      ("node", "importance (nats)", "value", "ablated", "at"),
      rows,
      f"{self.chosen.task}: the first {len(rows)} of {len(self.parts)} nodes",
    )

  def _attention_table(self) -> str:
    rows = []
    for head, pattern in self.attention.items():
      top = np.argsort(-pattern, kind="stable")[:_NUM_LOOKS]
      looks = (f"{i} {self.tokens[i]} ({pattern[i]:.0%})" for i in top)
      rows.append((head, ", ".join(looks)))
    return tables.html(
      ("head", "looks at"), rows, "Where its heads look from the last token"
    )


def answer_pairs(circuit: circuit_lib.Circuit) -> list[tuple[str, str]]:
  """Returns the answers of a circuit's examples, each pair once.

  Raises InputError if it has none: nothing says what it decides between.
  """
  need = "need a circuit that the search saved"
  examples = circuit.details.get("examples")
  if not examples:
    raise errors.InputError(
      f"circuit of {circuit.task} has no examples; {need}"
    )
  try:
    pairs = [(e["answer"], e["counter_answer"]) for e in examples]
  except (KeyError, TypeError) as e:
    raise errors.InputError(
      f"circuit of {circuit.task}: its examples have no {e}; {need}"
    ) from e
  return list(dict.fromkeys(pairs))


def shown(tokenizer, token: int) -> str:
  r"""Returns one token in quotes; part of a character shows as '\xe2'."""
  text = tokenizer.token_bytes(token)
  try:
    return repr(text.decode())
  except UnicodeDecodeError:
    return repr(text).removeprefix("b")


def top_tokens(
  model: transformer.Model, params: transformer.Params, tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (the model's most likely next tokens, all probabilities `[V]`)."""
  padded, last = _padded(model, tokens)
  logits = jax.jit(model.apply)(params, padded)[0, last]
  probabilities = np.asarray(jax.nn.softmax(logits))
  return np.argsort(-probabilities, kind="stable")[:_NUM_TOP], probabilities


def _padded(model, tokens: Sequence[int]) -> tuple[jax.Array, int]:
  """Returns (tokens `[1, T]` with zeros behind, the last token's position).

  So prompts of many lengths share a program; no token sees what is behind it.
  """
  width = sequences_lib.padded_length(len(tokens))
  if model.config.positions != "none":
    width = max(len(tokens), min(width, model.config.context_length))
  padded = np.zeros((1, width), np.int32)
  padded[0, : len(tokens)] = tokens
  return jnp.asarray(padded), len(tokens) - 1


def explain(
  model: transformer.Model,
  params: transformer.Params,
  circuit: circuit_lib.Circuit,
  tokenizer,
  tokens: Sequence[int],
  probabilities: np.ndarray,
) -> Explanation:
  """Returns what a circuit says of a prompt of at least one token.

  `probabilities` are of the next token, `[V]`, as `top_tokens` returns. Of
  several pairs of answers the one that the model finds likeliest counts. Raises
  InputError if the circuit's answers are unknown or are no single tokens, or it
  is no circuit of a model of this shape.
  """
  circuit_lib.check_model(circuit, f"circuit of {circuit.task}", model, None)
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
  padded, last = _padded(model, tokens)
  sequence = sequences_lib.Sequences(
    tokens=padded,
    positions=jnp.array([last]),
    correct=jnp.array([correct]),
    incorrect=jnp.array([incorrect]),
    groups=jnp.zeros(1, jnp.int32),
  )
  difference = circuit.logit_differences(params, sequence)
  influence = Influence(
    task=circuit.task,
    answers=(tokenizer.token_text(correct), tokenizer.token_text(incorrect)),
    mass=float(probabilities[[correct, incorrect]].sum()),
    full_difference=float(difference["full model"][0]),
    circuit_difference=float(difference["circuit"][0]),
    without_difference=float(difference["without it"][0]),
    has_top=int(np.argmax(probabilities)) in (correct, incorrect),
  )
  evaluator = circuit.evaluator(params, sequence)
  return Explanation(influence, circuit, evaluator)


def explain_prompt(
  model: transformer.Model,
  params: transformer.Params,
  circuits: Sequence[circuit_lib.Circuit],
  tokenizer,
  prompt: str,
) -> PromptExplanation:
  """Returns which of at least one circuits decides a prompt's next token.

  Raises InputError if the prompt is empty, or longer than a model with
  positions takes, or a circuit cannot be explained (`explain`).
  """
  tokens = tokenizer.encode(prompt)
  if not tokens:
    raise errors.bad_value("prompt", prompt, "at least one token")
  top, probabilities = top_tokens(model, params, tokens)
  explanations = [
    explain(model, params, circuit, tokenizer, tokens, probabilities)
    for circuit in circuits
  ]
  influences = tuple(e.influence for e in explanations)
  of_chosen = chosen_index(influences)
  explanation, chosen = explanations[of_chosen], influences[of_chosen]
  return PromptExplanation(
    prompt=prompt,
    tokens=tuple(shown(tokenizer, t) for t in tokens),
    next_tokens=tuple(
      (shown(tokenizer, t), float(probabilities[t])) for t in top.tolist()
    ),
    influences=influences,
    chosen=chosen,
    parts=tuple(parts(explanation, tokenizer)),
    attention=attention_of(explanation),
  )


def chosen_index(influences: Sequence[Influence]) -> int:
  """Returns which circuit decides, or comes nearest where none does."""
  chosen = deciding(influences) or nearest(influences)
  return [i is chosen for i in influences].index(True)


def deciding(influences: Sequence[Influence]) -> Influence | None:
  """Returns the circuit that decides, the largest effect first; or None."""
  return max(
    (i for i in influences if i.decides), key=lambda i: i.effect, default=None
  )


def nearest(influences: Sequence[Influence]) -> Influence:
  """Returns the circuit that comes nearest to deciding, of at least one.

  Where no circuit has the model's next token among its answers, one may still
  make the model's choice between its own two: the likeliest answers first.
  """
  return max(influences, key=lambda i: (i.chooses, i.mass))


def parts(explanation: Explanation, tokenizer) -> list[Part]:
  """Returns what each node does on a prompt, the most important first.

  Exact leave-one-out within the circuit, with its fitted scale.
  """
  circuit, evaluator = explanation.circuit, explanation.evaluator
  length = int(evaluator.sequences.positions[0]) + 1
  tokens = evaluator.sequences.tokens[0, :length].tolist()
  acts = _record(explanation)
  kept = circuit.node_mask
  nodes = [(name, *at) for name, m in kept.items() for at in np.argwhere(m)]
  # The first row is the whole circuit.
  masks = {n: np.repeat(m[None], 1 + len(nodes), 0) for n, m in kept.items()}
  for i, (name, row, index) in enumerate(nodes, 1):
    masks[name][i, row, index] = False
  diff_M = evaluator.logit_differences(masks)[:, 0]
  lost_N = circuit.logit_scale * (diff_M[0] - diff_M[1:])
  found = []
  for (name, row, index), lost in zip(nodes, lost_N, strict=True):
    site = sites.site_id(name, int(row))
    value_L = np.asarray(acts[site][0, :length, index])
    ablated = float(circuit.means[name][row, index])
    position = int(np.argmax(np.abs(value_L - ablated)))
    token = tokenizer.token_text(tokens[position])
    value = float(value_L[position])
    node = f"{site}:{index}"
    found.append(Part(node, position, token, value, ablated, float(lost)))
  return sorted(found, key=lambda part: -abs(part.importance))


def attention_of(explanation: Explanation) -> dict[str, np.ndarray]:
  """Returns where kept heads look from the last position, by "layer.head".

  Each `[L]`, less what the sink takes; in the circuit.
  """
  model, params = explanation.evaluator.model, explanation.evaluator.params
  value = explanation.circuit.node_mask.get("attn.v")
  if value is None or not value.any():
    return {}
  acts = _record(explanation)
  last = int(explanation.evaluator.sequences.positions[0])
  pattern = np.asarray(_patterns(model, params, acts))
  shape = model.config.n_layer, model.config.n_head, -1
  return {
    f"{layer}.{head}": pattern[layer, 0, last, head, : last + 1]
    for layer, head in np.argwhere(value.reshape(shape).any(-1))
  }


def _record(explanation) -> dict[str, jax.Array]:
  """Returns the values at all sites, `[1, L, width]`, in the circuit."""
  return _values(explanation.evaluator, dict(explanation.circuit.node_mask))


_patterns = jax.jit(hooks.attention_patterns, static_argnums=0)


@jax.jit
def _values(e: mask_evaluator.MaskEvaluator, mask):
  run = e.model, e.params, e.sequences.tokens
  hook = hooks.circuit_hook(*run, None, mask, e.means, e.freeze_norms)
  acts: dict[str, jax.Array] = {}
  e.model.residual(*run[1:], hooks.compose(hook, hooks.record(acts)))
  return acts


def to_dict(
  influences: Sequence[Influence], chosen: Influence, of_chosen: Sequence[Part]
) -> dict[str, Any]:
  """Returns plain values, fit for JSON."""
  return {
    "circuits": [
      dataclasses.asdict(i) | {"effect": i.effect, "decides": i.decides}
      for i in influences
    ],
    "nodes_of": chosen.task,
    "nodes": [dataclasses.asdict(part) for part in of_chosen],
  }
