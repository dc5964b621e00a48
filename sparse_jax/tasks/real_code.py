"""Real code around a task's prompts: variety that templates alone lack.

Circuits that were trained on a few templates fit them. So masks also see
prompts with lines of real files in front, and the task's own decisions where
real files make them. Both come from documents that the model was trained on:
held-out documents stay unseen.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.tasks import base, natural
from sparse_jax.tasks.pairs import Pairs, PairText, Prompts

_NUM_DOCUMENTS = 300
_NUM_PROMPTS = 1024
_MAX_TOKENS = 48  # Of a prompt: longer ones would make every mask step dearer.
_MAX_LINES = 2
_MAX_CHARACTERS = 48
_NUM_SNIPPETS = 2000
_INDENT = re.compile(" *")


@dataclasses.dataclass(frozen=True, eq=False)
class RealCode:
  """What real files add to a task's prompts.

  Attributes:
    snippets: a few whole lines of code each, not indented.
    prompts: the decisions of tasks in real files, by task name.
    max_tokens: most tokens of a prompt behind a snippet; None for any.
  """

  snippets: Sequence[str] = ()
  prompts: Mapping[str, Prompts | None] = dataclasses.field(
    default_factory=dict
  )
  max_tokens: int | None = None


def collect(tasks: Sequence[base.Task], config: config_lib.Config) -> RealCode:
  """Returns real code from the first documents that the model was trained on.

  `config` is what trained the model.
  """
  documents = list(
    itertools.islice(sources.documents(config.data, "train"), _NUM_DOCUMENTS)
  )
  length = min(_MAX_TOKENS, config.data.context_length)
  prompts = natural.harvest(
    tasks, documents, _NUM_PROMPTS, config.seed, length, progress=True
  )
  random.Random(f"snippets/{config.seed}").shuffle(documents)
  runs = itertools.chain.from_iterable(map(snippets, documents))
  chosen = tuple(itertools.islice(runs, _NUM_SNIPPETS))
  return RealCode(chosen, prompts, length)


def snippets(document) -> Iterator[str]:
  """Yields runs of up to three statements of one indent, not indented.

  None opens a block, so that what follows has the same indent.
  """
  code = natural.parse(document.text)
  lines = code.lines if code else ()
  for start in range(0, len(lines), 4 * _MAX_LINES):
    run = []
    for line in lines[start : start + _MAX_LINES]:
      text = code.text[line.start : line.end]
      opens = line.tokens[-1].text == ":" or "\n" in text.rstrip("\n")
      if opens or line.indent != lines[start].indent:
        break
      run.append(text.rstrip() + "\n")
    text = "".join(run)
    if 0 < len(text) <= _MAX_CHARACTERS and text.isascii():
      yield text


def surround(
  task: base.Task, code: RealCode, config: config_lib.PruneConfig
) -> base.Task:
  """Returns the task with real code in its training pairs.

  A share `config.behind_code` of them stands behind a snippet, a share
  `config.real_prompts` are real prompts. Validation pairs stay what they are:
  they decide sizes, and claims are made of such pairs. An adversary does less
  to prompts behind code.
  """

  def fits(pair: PairText) -> bool:
    if code.max_tokens is None:
      return True
    sides = task.tokenizer.encode_batch([pair.prompt, pair.counter_prompt])
    return max(map(len, sides)) <= code.max_tokens

  def generate(split: str, key: str) -> Iterator[PairText]:
    rng = random.Random(f"{key}/snippets")
    for pair in task.generate(split, key):
      if split == "train" and rng.random() < config.behind_code:
        longer = _behind(rng.choice(code.snippets), pair)
        pair = longer if fits(longer) else pair
      yield pair

  def augment(split: str, pairs: Pairs) -> Pairs:
    if split != "train":
      return pairs
    return mix(pairs, code.prompts.get(task.name), config.real_prompts)

  if not code.snippets:
    return task
  return dataclasses.replace(task, generate=generate, augment=augment)


def _behind(snippet: str, pair: PairText) -> PairText:
  """Returns the pair behind a snippet, which takes the prompt's indent."""
  indent = _INDENT.match(pair.prompt)[0]
  before = "".join(indent + line for line in snippet.splitlines(keepends=True))
  return dataclasses.replace(
    pair,
    prompt=before + pair.prompt,
    counter_prompt=before + pair.counter_prompt,
  )


def mix(pairs: Pairs, prompts: Prompts | None, share: float) -> Pairs:
  """Returns the pairs with real prompts among them, until they are `share`.

  A real prompt of one answer is paired with one of the other; they repeat as
  often as it takes. Tasks of more than two answers have no such pairs.
  """
  count = round(share * len(pairs) / (1 - share))
  real = _pair_up(prompts, count) if prompts is not None and count else None
  if real is None:
    return pairs
  joined = concatenate(pairs, real)
  order = np.random.default_rng(len(joined)).permutation(len(joined))
  return joined.take(order)


def _pair_up(prompts: Prompts, count: int) -> Pairs | None:
  """Returns `count` pairs of prompts of unlike answers, None without any."""
  answers = np.unique(prompts.correct)
  if len(answers) != 2 or not np.isin(prompts.incorrect, answers).all():
    return None
  a, b = (
    np.resize(np.flatnonzero(prompts.correct == answer), count)
    for answer in answers
  )
  return Pairs(
    prompts=prompts.tokens[a],
    counter_prompts=prompts.tokens[b],
    lengths=prompts.lengths[a],
    counter_lengths=prompts.lengths[b],
    answers=prompts.correct[a],
    counter_answers=prompts.correct[b],
    prompt_texts=("",) * count,
    counter_texts=("",) * count,
    templates=np.full(count, -1, np.int32),  # None of the task's own.
  )


def concatenate(a: Pairs, b: Pairs) -> Pairs:
  """Returns the pairs of both, padded to the longer prompts."""
  width = max(a.prompts.shape[1], b.prompts.shape[1])

  def join(x, y):
    if isinstance(x, tuple):
      return x + y
    if x.ndim == 2:  # Tokens.
      x, y = (np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in (x, y))
    return np.concatenate([x, y])

  names = [f.name for f in dataclasses.fields(Pairs)]
  return Pairs(**{n: join(getattr(a, n), getattr(b, n)) for n in names})
