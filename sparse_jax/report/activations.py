"""How a circuit works: what its nodes hold, on real code and on prompts.

All values are those of the whole model, with nothing ablated. Held-out code
shows what excites a node; the task's test pairs show what tells its two sides
apart; heads show where they look.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import explain, sites, tasks
from sparse_jax.model import hooks, transformer
from sparse_jax.report import user_prompts
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

MAX_TOKENS = 128
_NUM_PAIRS = 64
# Test pairs that can be looked at: of one circuit, of all, and at least.
_MOST_SHOWN, _ALL_SHOWN, _LEAST_SHOWN = 32, 128, 8
_NUM_WINDOWS, _WINDOW = 384, 64
_WINDOWS_A_DOCUMENT = 3
_NUM_SNIPPETS = 6
_BEFORE, _AFTER = 14, 6
# Snippets whose last tokens agree this far say the same thing again.
_ALIKE = 4
_NUM_BINS = 12
_BATCH = 8


class Snippet(NamedTuple):
  """A piece of held-out code: window `first` tokens in, peak from there."""

  window: int
  first: int
  peak: int
  values: np.ndarray  # Of one node, one a token.


class NodeValues(NamedTuple):
  """What one node holds.

  Attributes:
    scale: the largest magnitude of all values that are kept of it.
    prompts: its values on every side of every prompt, one after another.
    most: where held-out code excites it most; none without such code.
    least: where it is lowest there.
    histogram: (low, high, counts of the first side, counts of the second) over
      test pairs: of each prompt the value that is furthest from the mean.
  """

  scale: float
  prompts: np.ndarray
  most: Sequence[Snippet]
  least: Sequence[Snippet]
  histogram: tuple[float, float, list[int], list[int]]


class Side(NamedTuple):
  """One prompt; `answers` are the correct token and the other one.

  `differences` are by name the logit differences, in nats, after each token.
  """

  tokens: Sequence[int]
  answers: tuple[int, int]
  differences: Sequence[tuple[str, np.ndarray]] = ()


class Prompt(NamedTuple):
  """A pair of prompts, or one alone; `is_own` if the user brought it."""

  sides: Sequence[Side]
  is_own: bool = False


class Activations(NamedTuple):
  """Of one circuit: by node key, and by head ("0.1") where it looks.

  A head's row holds, for every side of every prompt and every token, how much
  it looks at each token up to that one.
  """

  nodes: Mapping[str, NodeValues]
  prompts: Sequence[Prompt]
  heads: Mapping[str, np.ndarray]


class Evidence(NamedTuple):
  """What a page's circuits do, and the texts of all tokens by id.

  `windows` are (file, tokens) of held-out code that snippets are from.
  """

  circuits: Sequence[Activations]
  windows: Sequence[tuple[str, np.ndarray]]
  texts: Mapping[int, str]


def collect(
  model: transformer.Model,
  params: transformer.Params,
  tokenizer,
  circuits: Sequence[Mapping[str, circuit_lib.Circuit]],
  documents: Iterable[Any] = (),
  prompts: Sequence[user_prompts.UserPrompt] = (),
) -> Evidence:
  """Returns what circuits do on held-out code, test pairs and own prompts.

  Args:
    model: the model that all circuits were cut from.
    params: its parameters.
    tokenizer: its tokenizer.
    circuits: by task what `circuit.load_all` returns.
    documents: held-out documents, with `text` and `name`; the first ones count.
    prompts: of the user's own.

  Raises:
    InputError: if a circuit is another model's, or a prompt has no tokens or
      too many.
  """
  for each in circuits:
    core = each["core"]
    name = f"circuit of {core.task}"
    circuit_lib.check_model(core, name, model, params)
  own = _encode(model, tokenizer, prompts)
  windows = list(_windows(model, tokenizer, documents))
  picks = [_channels(list(each.values())[-1]) for each in circuits]
  union = _union(picks)
  code = _on_windows(model, params, windows, union)
  found = [
    _activations(
      _Run(model, params, tokenizer, each, windows, pick),
      own,
      _select(code, union, pick),
      # A page of many circuits stays small enough to be mailed.
      min(_MOST_SHOWN, max(_LEAST_SHOWN, _ALL_SHOWN // len(circuits))),
    )
    for each, pick in zip(circuits, picks, strict=True)
  ]
  return Evidence(*_only_used(found, windows), _Texts(tokenizer))


def _only_used(found, windows):
  """Returns the same without windows that no snippet is from."""
  numbers: dict[int, int] = {}

  def renumber(snippets):
    return [
      s._replace(window=numbers.setdefault(s.window, len(numbers)))
      for s in snippets
    ]

  found = [
    each._replace(
      nodes={
        key: v._replace(most=renumber(v.most), least=renumber(v.least))
        for key, v in each.nodes.items()
      }
    )
    for each in found
  ]
  return found, [windows[i] for i in numbers]


class _Texts(dict):
  """Texts of tokens, looked up when they are first asked for."""

  def __init__(self, tokenizer):
    super().__init__()
    self._tokenizer = tokenizer

  def __missing__(self, token: int) -> str:
    self[token] = self._tokenizer.token_text(token)
    return self[token]


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
  """A task's circuits in their model; `picks` are the channels to record."""

  model: transformer.Model
  params: transformer.Params
  tokenizer: Any
  circuits: Mapping[str, circuit_lib.Circuit]
  windows: Sequence[tuple[str, np.ndarray]]
  picks: Mapping[str, np.ndarray]

  def record(self, tokens) -> dict[str, jax.Array]:
    """Returns the picked channels in the whole model, `[B, L, channels]`."""
    return _record(self.model, self.params, tokens, _as_arrays(self.picks))

  def full_difference(self, tokens, answers) -> jax.Array:
    """Returns the whole model's logit differences, `[B, L]`."""
    return _differences(self.model, self.params, tokens, answers)

  def difference(self, circuit, tokens, answers) -> jax.Array:
    """Returns a circuit's logit differences, not calibrated, `[B, L]`."""
    mask, means = dict(circuit.node_mask), dict(circuit.means)
    args = self.model, self.params, tokens, answers, mask, means
    return _differences(*args, circuit.freeze_norms)

  @property
  def core(self) -> circuit_lib.Circuit:
    return self.circuits["core"]

  @property
  def heads(self) -> list[tuple[int, int]]:
    """(layer, head) of every head that has a node."""
    width = self.model.config.d_head
    found = set()
    for site, channels in self.picks.items():
      name, layer = sites.parse_site_id(site, self.model.config.n_layer)
      if sites.SITES[name].width == "d_attn":
        found |= {(layer, int(channel) // width) for channel in channels}
    return sorted(found)


def _channels(circuit: circuit_lib.Circuit) -> dict[str, np.ndarray]:
  """Returns a circuit's channels by full site name."""
  found = {}
  for name, mask in circuit.node_mask.items():
    for row, kept in enumerate(mask):
      if kept.any():
        found[sites.site_id(name, row)] = np.flatnonzero(kept)
  return found


def _union(picks) -> dict[str, np.ndarray]:
  names = dict.fromkeys(site for pick in picks for site in pick)
  return {
    site: np.unique(np.concatenate([p[site] for p in picks if site in p]))
    for site in names
  }


def _select(values, union, pick) -> dict[str, np.ndarray]:
  """Returns, of recorded channels, one circuit's."""
  return {
    site: values[site][..., np.searchsorted(union[site], channels)]
    for site, channels in pick.items()
    if site in values
  }


def _encode(model, tokenizer, prompts) -> list[list[list[int]]]:
  """Returns the tokens of each user's prompt's sides."""
  limit = MAX_TOKENS
  if model.config.positions != "none":
    limit = min(limit, model.config.context_length or limit)
  encoded = []
  for number, prompt in enumerate(prompts, 1):
    texts = [prompt.prompt]
    if prompt.counter_prompt is not None:
      texts.append(prompt.counter_prompt)
    encoded.append([tokenizer.encode(text) for text in texts])
    for tokens in encoded[-1]:
      if not 0 < len(tokens) <= limit:
        raise errors.bad_value(
          f"prompts: number {number}: tokens", len(tokens), f"1 to {limit}"
        )
  return encoded


def _windows(model, tokenizer, documents) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (file, tokens) of pieces from all over the first documents."""
  length = min(_WINDOW, model.config.context_length or _WINDOW)
  count = 0
  for document in documents:
    tokens = np.asarray(tokenizer.encode(document.text), np.int32)
    whole = len(tokens) // length
    chosen = np.linspace(0, whole, min(whole, _WINDOWS_A_DOCUMENT), False)
    for i in chosen.astype(int):
      yield document.name, tokens[i * length : (i + 1) * length]
      count += 1
      if count == _NUM_WINDOWS:
        return


def _on_windows(model, params, windows, union) -> dict[str, np.ndarray]:
  """Returns by site the recorded channels `[windows, L, channels]`."""
  if not (windows and union):
    return {}
  record = lambda t: _record(model, params, t, _as_arrays(union))
  return _on_rows(model, [tokens for _, tokens in windows], record)


def _as_arrays(picks) -> dict[str, jax.Array]:
  return {site: jnp.asarray(channels) for site, channels in picks.items()}


@functools.partial(jax.jit, static_argnames="model")
def _record(model, params, tokens, picks) -> dict[str, jax.Array]:
  """Returns the picked channels of the whole model, `[B, L, channels]`."""
  acts: dict[str, jax.Array] = {}
  model.residual(params, tokens, hooks.record(acts, list(picks)))
  return {site: acts[site][..., channels] for site, channels in picks.items()}


@functools.partial(jax.jit, static_argnames=("model", "heads"))
def _looks(model, params, tokens, heads) -> jax.Array:
  """Returns where heads, (layer, head), look: `[heads, B, L, L]`."""
  acts: dict[str, jax.Array] = {}
  names = hooks.attention_sites(model.config.n_layer)
  model.residual(params, tokens, hooks.record(acts, names))
  pattern = hooks.attention_patterns(model, params, acts)
  return jnp.stack([pattern[layer, :, :, head] for layer, head in heads])


@functools.partial(jax.jit, static_argnames=("model", "freeze_norms"))
def _differences(
  model, params, tokens, answers, mask=None, means=None, freeze_norms=False
) -> jax.Array:
  """Returns the logit differences after each token, `[B, L]`.

  `answers` are `[B, 2]`, the correct token first; without a mask the model is
  whole.
  """
  hook = None
  if mask is not None:
    run = model, params, tokens, None
    hook = hooks.circuit_hook(*run, mask, means, freeze_norms)
  x_BxLxD = model.residual(params, tokens, hook)
  both = jnp.broadcast_to(answers[:, None], (*tokens.shape, 2))
  logits = model.unembed(params, x_BxLxD, tokens, both)
  return logits[..., 0] - logits[..., 1]


def _activations(run: _Run, own, code, num_shown: int) -> Activations:
  pairs = test_pairs(run.core, run.tokenizer)
  prompts = [Prompt(sides) for sides in pairs[:num_shown]]
  prompts += [Prompt(_with_answers(run, pairs, r), is_own=True) for r in own]
  shown = [side for prompt in prompts for side in prompt.sides]
  rows = [side.tokens for side in shown]
  is_second: list[bool | None] = [
    None if prompt.is_own else i == 1
    for prompt in prompts
    for i in range(len(prompt.sides))
  ]
  for sides in pairs[num_shown:]:
    rows += [side.tokens for side in sides]
    is_second += [False, True][: len(sides)]
  values = _on_rows(run.model, rows, run.record) if rows else {}
  nodes = {}
  if rows or code:
    nodes = _node_values(run, rows, values, len(shown), is_second, code)
  differences = iter(_side_differences(run, shown) if shown else ())
  prompts = [
    prompt._replace(
      sides=[s._replace(differences=next(differences)) for s in prompt.sides]
    )
    for prompt in prompts
  ]
  return Activations(nodes, prompts, _head_patterns(run, rows[: len(shown)]))


def test_pairs(circuit: circuit_lib.Circuit, tokenizer) -> list[list[Side]]:
  """Returns a task's test pairs: of a user's own task those that are stored.

  Each is two sides, or one where a circuit's examples have no other.
  """
  if circuit.task in tasks.TASK_NAMES:
    task = tasks.make_task(circuit.task, tokenizer)
    pairs = task.pairs("test", _NUM_PAIRS, at_most=True)
    both = (
      (pairs.prompts, pairs.lengths, pairs.answers, pairs.counter_answers),
      (
        pairs.counter_prompts,
        pairs.counter_lengths,
        pairs.counter_answers,
        pairs.answers,
      ),
    )
    sides = [
      [
        Side(row[:length].tolist(), (int(a), int(b)))
        for row, length, a, b in zip(*arrays, strict=True)
      ]
      for arrays in both
    ]
    return [list(pair) for pair in zip(*sides, strict=True)]
  return _stored_pairs(circuit, tokenizer)


def _stored_pairs(circuit, tokenizer) -> list[list[Side]]:
  """Returns the pairs among a circuit's examples that have tokens."""
  ids = {tokenizer.token_text(i): i for i in range(tokenizer.vocab_size)}
  found = []
  for example in circuit.details.get("examples") or ():
    if not isinstance(example, Mapping):  # The page says what is wrong with it.
      continue
    sides = []
    for mine, other in (("", "counter_"), ("counter_", "")):
      texts = example.get(f"{mine}prompt_tokens") or ()
      answers = [example.get(f"{p}answer") for p in (mine, other)]
      tokens = [ids.get(text) for text in (*texts, *answers)]
      if texts and None not in tokens:
        sides.append(Side(tokens[:-2], tuple(tokens[-2:])))
    if sides:
      found.append(sides)
  return found


def _with_answers(run: _Run, pairs, rows) -> list[Side]:
  """Returns a user's prompt with those answers that the model finds likeliest.

  They are in the order that the model prefers; the other side's are swapped.
  """
  answers = list(dict.fromkeys(sides[0].answers for sides in pairs))
  if not answers:
    answers = [_answer_ids(run)]
  _, probabilities = explain.top_tokens(run.model, run.params, rows[0])
  best = max(answers, key=lambda ids: probabilities[list(ids)].sum())
  a, b = sorted(best, key=lambda i: -probabilities[i])
  return [Side(row, (a, b)[:: 1 - 2 * i]) for i, row in enumerate(rows)]


def _answer_ids(run: _Run) -> tuple[int, int]:
  for texts in explain.answer_pairs(run.core):
    ids = [run.tokenizer.single_token(text) for text in texts]
    if None not in ids:
      return tuple(ids)
  raise errors.InputError(
    f"circuit of {run.core.task}: its answers are no single tokens of the"
    " model's tokenizer; need the model it was cut from"
  )


def _on_rows(model, rows, function, *others: np.ndarray) -> Any:
  """Returns a function of padded rows, `[B, L]`, and of others' rows.

  Results are trees of arrays `[B, L, …]`, joined over all rows.
  """
  longest = max(map(len, rows), default=1)
  width = sequences_lib.padded_length(longest)
  if model.config.positions != "none":  # There are no further positions.
    width = max(longest, min(width, model.config.context_length))
  tokens = np.zeros((len(rows), width), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  parts = []
  for start in range(0, max(1, len(rows)), _BATCH):
    # One program serves all batches: a short one repeats its rows.
    index = np.resize(np.arange(start, min(start + _BATCH, len(rows))), _BATCH)
    parts.append(function(*(x[index] for x in (tokens, *others))))
  join = lambda *xs: np.concatenate([np.asarray(x) for x in xs])[: len(rows)]
  return jax.tree.map(join, *parts)


def _side_differences(run: _Run, sides) -> list[list[tuple[str, np.ndarray]]]:
  """Returns by side [("full model", `[L]`), …] logit differences in nats."""
  rows = [side.tokens for side in sides]
  answers_Sx2 = np.array([side.answers for side in sides], np.int32)
  sign_S = np.asarray(logit_difference_lib.answer_sign(*answers_Sx2.T))
  curves = [
    ("full model", _on_rows(run.model, rows, run.full_difference, answers_Sx2))
  ]
  for which, circuit in run.circuits.items():
    name = "circuit" if len(run.circuits) == 1 else which
    difference = functools.partial(run.difference, circuit)
    diff_SxL = _on_rows(run.model, rows, difference, answers_Sx2)
    calibration = logit_difference_lib.Calibration(
      circuit.logit_scale, circuit.details.get("answer_shift", 0.0)
    )
    curves.append(
      (
        name,
        logit_difference_lib.calibrate(diff_SxL, sign_S[:, None], calibration),
      )
    )
  return [
    [(name, np.asarray(curve[i, : len(row)])) for name, curve in curves]
    for i, row in enumerate(rows)
  ]


def _head_patterns(run: _Run, rows) -> dict[str, np.ndarray]:
  """Returns by head how much each token looks at those up to it, in a row."""
  if not (run.heads and rows):
    return {}
  # Batch first, as `_on_rows` joins; then head by head.
  look = lambda t: jnp.swapaxes(
    _looks(run.model, run.params, t, tuple(run.heads)), 0, 1
  )
  pattern_SxHxLxL = _on_rows(run.model, rows, look)
  found = {}
  for i, (layer, head) in enumerate(run.heads):
    triangles = [
      pattern_SxHxLxL[s, i][np.tril_indices(len(row))]
      for s, row in enumerate(rows)
    ]
    found[f"{layer}.{head}"] = np.concatenate(triangles)
  return found


def _node_values(run: _Run, rows, values, num_shown, is_second, code):
  """Returns by node key what it holds.

  Args:
    run: its `picks` are the nodes.
    rows: tokens of all sides, the shown prompts' first.
    values: by site `[S, L, channels]` on them.
    num_shown: how many sides belong to prompts that are shown.
    is_second: by side of a test pair which side it is; None elsewhere.
    code: by site `[windows, L, channels]` on held-out code; may be empty.
  """
  means = list(run.circuits.values())[-1].means
  found = {}
  for site, channels in run.picks.items():
    name, layer = sites.parse_site_id(site, run.model.config.n_layer)
    for i, channel in enumerate(channels):
      value_SxL = values[site][..., i] if values else ()
      shown = [value_SxL[s, : len(r)] for s, r in enumerate(rows[:num_shown])]
      shown = np.concatenate([np.zeros(0, np.float32), *shown])
      mean = float(means[name][layer or 0, channel])
      furthest = [
        row[np.argmax(np.abs(row - mean))]
        for row in (value_SxL[s, : len(r)] for s, r in enumerate(rows))
      ]
      code_NxL = code[site][..., i] if code else np.zeros((0, 1), np.float32)
      most = _extremes(code_NxL, run.windows)
      least = _extremes(-code_NxL, run.windows)
      least = [s._replace(values=-s.values) for s in least]
      kept = np.concatenate([shown, *(s.values for s in (*most, *least))])
      found[f"{site}:{channel}"] = NodeValues(
        scale=float(np.max(np.abs(kept), initial=0.0)),
        prompts=shown,
        most=most,
        least=least,
        histogram=_histogram(furthest, is_second),
      )
  return found


def _extremes(value_NxL: np.ndarray, windows) -> list[Snippet]:
  """Returns snippets around the largest values above 0, one a window."""
  if not len(value_NxL):
    return []
  peaks = value_NxL.argmax(1)
  highest = value_NxL.max(1)
  found, seen = [], set()
  for i in np.argsort(-highest, kind="stable"):
    if highest[i] <= 0 or len(found) == _NUM_SNIPPETS:
      break
    peak, tokens = int(peaks[i]), windows[i][1]
    context = tuple(tokens[max(0, peak + 1 - _ALIKE) : peak + 1].tolist())
    if context not in seen:
      seen.add(context)
      first = max(0, peak - _BEFORE)
      values = value_NxL[i, first : peak + 1 + _AFTER]
      found.append(Snippet(int(i), first, peak, values))
  return found


def _histogram(values, is_second) -> tuple[float, float, list[int], list[int]]:
  """Returns (low, high, counts of first sides, counts of second sides)."""
  sides = [
    [v for v, second in zip(values, is_second, strict=True) if second is side]
    for side in (False, True)
  ]
  both = [*sides[0], *sides[1]] or [0.0]
  low, high = float(min(both)), float(max(both))
  counts = (
    np.histogram(side, _NUM_BINS, (low, high if high > low else low + 1))[0]
    for side in sides
  )
  return low, high, *(c.tolist() for c in counts)
