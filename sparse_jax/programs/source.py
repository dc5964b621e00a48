"""Writes a circuit as a readable Python file: NumPy and `tokenizers` alone.

One function a head and a neuron, weights between nodes as literals, residual
channels by name. What is too large to be read, or is no weight of the circuit,
is packed at the end: the token embedding, positions, the tokenizer, norms,
means, and the weights of channels that only compete in AbsTopK.
"""

import base64
import dataclasses
import importlib.resources
import io
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax.model import program as program_lib
from sparse_jax.model import shrink
from sparse_jax.programs import names as names_lib
from sparse_jax.utils import errors

_WIDTH = 80
_GLUE = "\N{NO-BREAK SPACE}"  # A space at which no line is broken.
_FINGERPRINT = len("sha256:") + 12  # Enough to tell a model by.
_MOST_TOKENS = 1  # Shown of a channel.
_Packed = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a program decides between.

  Attributes:
    texts: of the answers, each once.
    tokens: theirs.
    pairs: places of two answers that a prompt decides between.
  """

  texts: tuple[str, ...]
  tokens: tuple[int, ...]
  pairs: tuple[tuple[int, int], ...]


def find_answers(pairs: Iterable[tuple[str, str]], tokenizer) -> Answers:
  """Returns the answers of text pairs; both orders of a pair are one.

  Raises InputError for an answer that is no single token.
  """
  texts = tuple(dict.fromkeys(text for pair in pairs for text in pair))
  tokens = [tokenizer.single_token(text) for text in texts]
  if None in tokens:
    raise errors.InputError(
      f"answer {texts[tokens.index(None)]!r} is no single token of the model's"
      " tokenizer; need the model that the circuit was cut from"
    )
  at = [tuple(sorted(map(texts.index, pair))) for pair in pairs]
  return Answers(texts, tuple(tokens), tuple(dict.fromkeys(at)))


def write_source(
  circuit: circuit_lib.Circuit,
  params,
  tokenizer,
  answers: Answers,
  claims: Sequence[str] = (),
) -> str:
  """Returns the text of a circuit's Python file.

  Args:
    circuit: the circuit.
    params: parameters of the model it was cut from.
    tokenizer: the model's.
    answers: what it decides between.
    claims: lines on what is claimed of it, for the docstring.

  Raises:
    InputError: for a circuit with frozen norms.
  """
  circuit.compact(params, answers.tokens)  # Refuses what is no program.
  program = shrink.shrink(
    circuit.model,
    params,
    circuit.node_mask,
    circuit.means,
    circuit.logit_scale,
    answers.tokens,
    by_token=False,
  )
  return _Writer(program, circuit, tokenizer, answers, claims).text()


class _Writer:
  """Collects a file's lines, and what is packed behind them."""

  def __init__(self, program, circuit, tokenizer, answers, claims):
    self.program, self.circuit, self.answers = program, circuit, answers
    self.tokenizer, self.claims = tokenizer, claims
    self.names = names_lib.Names(program)
    self.packed: _Packed = {"embed": program.embed_VxR}
    self.blocks: list[str] = []

  def text(self) -> str:
    """Returns the whole file."""
    steps, last = [], None  # The sublayer that takes a mean that follows it.
    for i, sublayer in enumerate(self.program.sublayers):
      kind = ("attn", "mlp")[i % 2]
      site, function = f"{i // 2}.{kind}", f"{kind}{i // 2}"
      is_plain = self._adds_alone(sublayer)
      # What the MLP beside it reads lacks its mean.
      is_apart = self.program.config.parallel and kind == "attn"
      if sublayer.body is None and is_plain and last and not is_apart:
        self.packed[f"{last}.constant"] += sublayer.constant_R
        continue
      last = site if is_plain else None
      make = self._attention if kind == "attn" else self._mlp
      if sublayer.body is not None:
        self.blocks.append("\n".join(make(i // 2, site, sublayer.body)))
      if is_apart:
        steps.append("  before = stream")
      is_beside = self.program.config.parallel and kind == "mlp"
      read = "before" if is_beside else "stream"
      call = "" if sublayer.body is None else f", *{function}({read})"
      steps.append(f'  stream = leave("{site}", stream{call})')
      self.packed[f"{site}.constant"] = sublayer.constant_R.copy()
      if sublayer.k is not None:
        self.packed[f"{site}.leave_k"] = np.array(sublayer.k)
    self._run(steps)
    helpers = importlib.resources.files("sparse_jax.programs")
    helpers = (helpers / "templates" / "helpers.txt").read_text("utf-8")
    used = self._only_used(self._with_options(helpers).split("\n\n\n"))
    parts = [self._head(), *used, *self.blocks, self._tail()]
    # One empty line between sublayers, none inside: functions are many, short.
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"

  def _adds_alone(self, sublayer: program_lib.Sublayer) -> bool:
    """Returns whether nothing else is done to the stream where it is left."""
    is_linear = self.program.config.residual_activation == "identity"
    return is_linear and sublayer.k is None

  def _with_options(self, helpers: str) -> str:
    """Returns the helpers without lines of options that the model lacks.

    Such a line ends with `#: ` and the option.
    """
    c = self.program.config
    packs = lambda *ends: any(name.endswith(ends) for name in self.packed)
    has = {
      "layer": c.norm == "layer",
      "relu": c.residual_activation == "relu",
      "position": c.concatenates_positions,
      "shares": packs(".shares"),
      "read_k": packs(".attn.k", ".mlp.k"),
      "write_k": packs(".resid_delta.k"),
      "compete": packs(".q.k", ".k.k", ".v.k", ".post_act.k"),
      "leave_k": packs(".leave_k"),
    }
    lines = (line.split("  #: ") for line in helpers.splitlines())
    return "\n".join(
      text for text, *option in lines if all(has[o] for o in option)
    )

  def _only_used(self, helpers: list[str]) -> list[str]:
    """Returns the helpers that the file calls, or that those call."""
    own = "\n".join(self.blocks)
    name = lambda block: block.split("(")[0].removeprefix("def ")
    used = [h for h in helpers if f"{name(h)}(" in own or f"{name(h)})" in own]
    for _ in helpers:
      text = "\n".join(used)
      used = [h for h in helpers if h in used or f"{name(h)}(" in text]
    return used

  def _head(self) -> str:
    c, circuit = self.program.config, self.circuit
    m = circuit.metrics
    measured = [
      f"{label} {m[name]:.3g}"
      for label, name in (
        ("test loss in nats", "test_loss"),
        ("the whole model's", "full_model_test_loss"),
        ("accuracy", "test_accuracy"),
        ("the whole model's", "full_model_test_accuracy"),
      )
      if m.get(name) is not None
    ]
    texts = [repr(text) for text in self.answers.texts]
    unbroken = ", ".join(text.replace(" ", _GLUE) for text in texts)
    doc = [
      f"{circuit.task}: which of {', '.join(texts)} comes next.",
      "",
      f"{circuit.num_nodes} nodes and {circuit.num_edges} edges of the model"
      f" {circuit.model_fingerprint[:_FINGERPRINT]}; all else is held at its"
      f" mean ({circuit.ablation}). Measured:"
      f" {', '.join(measured) or 'nothing'}.",
      *self.claims,
      "head0_3_to_mlp1(r90=0.5) is half of residual channel 90, which head 3 of"
      " layer 0 writes and the MLP of layer 1 reads. Numbers are weights, and"
      " biases with closed nodes at their means; DATA has what is too large or"
      " no node.",
    ]
    wrap = lambda line: textwrap.wrap(
      line.replace("\\", "\\\\").replace('"""', "'''"),
      _WIDTH,
      break_long_words=False,
      break_on_hyphens=False,
    )
    lines = [part for line in doc for part in wrap(line) or [""]]
    lines[0] = '"""' + lines[0]
    rotary = []
    if c.positions == "rotary":
      rotary = [
        f"ROTARY_BASE, ROTARY_WIDTH = {c.rotary_base!r}, {c.rotary_width}"
      ]
    body = [
      *lines,
      '"""',
      "",
      "import base64, io, math, sys, types",
      "import numpy as np",
      "import tokenizers",
      "",
      *_wrapped(
        f"ANSWERS, PAIRS = [{unbroken}],{_GLUE}{list(self.answers.pairs)!r}"
      ),
      f"SCORE_SCALE, EPS, LOGIT_SCALE = {program_lib.score_scale(c)!r},"
      f" {program_lib.norm_eps(c)!r}, {circuit.logit_scale!r}",
      *rotary,
      "",
      *self._channel_notes(),
    ]
    return "\n".join(body)

  def _channel_notes(self) -> list[str]:
    """Returns, of channels that are read, the tokens that weigh most there."""
    notes = []
    for channel in self.names.read_of_token:
      column_V = self.program.embed_VxR[:, channel]
      top = np.argsort(-np.abs(column_V), kind="stable")[:_MOST_TOKENS]
      text = lambda t: f"{_shown(self.tokenizer, t)} {column_V[t]:.2f}"
      shown = [text(t).replace(" ", _GLUE) for t in top.tolist() if column_V[t]]
      notes.append(f"r{channel}:{_GLUE}{', '.join(shown) or 'none'}")
    if not notes:
      return []
    text = f"# Tokens that weigh most: {'; '.join(notes)}."
    return _wrapped(text, "# ")

  def _input(self, i: int, site: str, source: program_lib.Input) -> list[str]:
    """Returns the line that reads a sublayer's channels."""
    named: dict[str, list[str]] = {}
    for channel in source.site.opened.tolist():
      name, _, number = self.names.at(channel, i).rpartition("_r")
      named.setdefault(name, []).append(number)
    channels = "".join(
      f", {name}=({', '.join(at)}{',' * (len(at) == 1)})"
      for name, at in named.items()
    )
    self._pack_norm(site, source.norm)
    if source.position_LxP is not None:
      self.packed[f"{site}.position"] = source.position_LxP
    if source.site.k is not None:
      self.packed[f"{site}.k"] = np.array(source.site.k)
    return _wrapped(f'  h = read("{site}", stream{channels})')

  def _pack_norm(self, site: str, norm: program_lib.Norm) -> None:
    if np.any(norm.scale_R != 1):
      self.packed[f"{site}.scale"] = norm.scale_R
    if norm.bias_R is not None and norm.bias_R.any():
      self.packed[f"{site}.bias"] = norm.bias_R

  def _reads(self, i: int, source: program_lib.Input) -> list[str]:
    return [self.names.at(c, i) for c in source.site.opened.tolist()]

  def _pack_rivals(self, site: str, m: program_lib.Map) -> None:
    self.packed[f"{site}.channels"] = m.site.channels
    self.packed[f"{site}.weight"] = m.weight_SxT
    self.packed[f"{site}.bias"] = m.bias_T
    self.packed[f"{site}.k"] = np.array(m.site.k)

  def _qkv(self, site, letter, m, head, reads) -> list[str]:
    """Returns the lines of a head's queries, keys or values, and packs."""
    c = self.program.config
    own = [i for i in m.site.opened if i // c.d_head == head.index]
    if not own:
      return []
    terms = {int(i): _sums(m, int(i), reads) for i in own}
    return self._compete(site, letter, letter, m, terms)

  def _compete(self, prefix, name, letter, m, terms, activation="") -> list:
    """Returns the lines that give own channels the names `letter` + number."""
    if m.site.k is None:
      lines = []
      for i, expression in terms.items():
        lines += _wrapped(f"  {letter}{i} = {expression}")
      return lines
    self._pack_rivals(f"{prefix}.{name}", m)
    targets = ", ".join(f"{letter}{i}" for i in terms)
    own = ", ".join(f"{i}:{_GLUE}{value}" for i, value in terms.items())
    call = f'h.compete("{name}", {{{own}}}{activation})'
    return _wrapped(f"  [{targets}]{_GLUE}={_GLUE}{call}")

  def _attention(self, layer, site, body: program_lib.Attention) -> list[str]:
    """Returns the functions of a layer's heads and of its attention."""
    reads, functions, sources = self._reads(2 * layer, body.input), [], []
    lines = [f"def attn{layer}(stream):"]
    lines += self._input(2 * layer, site, body.input)
    for head in body.heads:
      name = f"head{layer}_{head.index}"
      values = [f"v{i}" for i in body.value.site.opened[head.v_at]]
      share = [f"share{head.index}"] if head.has_share else []
      functions += self._head_function(site, name, head, body, reads)
      lines.append(f"  {', '.join([*values, *share])} = {name}(h)")
      sources += values
    shares = [f"share{h.index}" for h in body.heads if h.has_share]
    if body.uniform:
      shares.append(self._closed(site, body.uniform, body.window))
    opened = body.write.site.opened.tolist()
    terms = {i: _terms(body.write, i, sources) for i in opened}
    weight_SxN = body.write.weight_SxT[:, body.write.site.is_open].copy()
    weight_SxN[: len(sources)] = 0
    if weight_SxN.any():
      self.packed[f"{site}.shares"] = weight_SxN
    arguments = ["h.n", *sources, *shares]
    return functions + lines + self._write(site, body.write, terms, arguments)

  def _closed(self, site, uniform, window) -> str:
    """Returns the expression of what sinks leave of closed heads."""
    c = self.program.config
    odds_U = np.exp(np.minimum([head.log_odds for head in uniform], 80))
    if c.positions == "none":  # Of any length.
      self.packed[f"{site}.odds"] = odds_U
      most = "" if window is None else f", {window}"
      return f'*closed("{site}", h.n{most})'
    number_Lx1 = 1.0 + np.arange(c.context_length)[:, None]
    number_Lx1 = np.minimum(number_Lx1, window or np.inf)
    self.packed[f"{site}.closed"] = (number_Lx1 / (number_Lx1 + odds_U)).T
    return f'*DATA["{site}.closed"][:,{_GLUE}:{_GLUE}h.n]'

  def _write(self, site, m, terms, arguments) -> list[str]:
    """Returns the lines that end a sublayer's function."""
    own = ", ".join(f"{i}:{_GLUE}{value}" for i, value in terms.items())
    if m.site.k is not None:
      self._pack_rivals(f"{site}.resid_delta", m)
    columns = f"columns({', '.join(arguments)})"
    return _wrapped(f"  return {columns},{_GLUE}{{{own}}}")

  def _head_function(self, site, name, head, body, reads) -> list[str]:
    value = body.value.site.opened[head.v_at].tolist()
    places = [int(np.searchsorted(body.value.site.opened, i)) for i in value]
    writes = np.any(
      body.write.weight_SxT[places][:, body.write.site.is_open] != 0, 0
    )
    written = [f"r{i}" for i in body.write.site.opened[writes]]
    what = ", ".join(written) or "its share"
    lines = [f"def {name}(h):  # Writes {what}."[:_WIDTH]]
    lines += self._qkv(site, "q", body.query, head, reads)
    lines += self._qkv(site, "k", body.key, head, reads)
    lines += self._qkv(site, "v", body.value, head, reads)
    sink = "-np.inf" if head.sink is None else _number(np.float32(head.sink))
    pairs = ", ".join(self._pairs(head, body))
    arguments = f"[{pairs}], {self._closed_score(site, head, body)}, {sink}"
    lines += _wrapped(f"  look = attend(h.n, {arguments})")
    returned = [f"look @ v{i}" for i in value]
    if body.value.site.k is None:
      full = "np.broadcast_to(v{}, len(look))"
      returned = [f"look @ {full.format(i)}" for i in value]
    if head.has_share:
      returned.append("look.sum(-1)")
    return lines + _wrapped(f"  return {', '.join(returned)}")

  def _pairs(self, head, body) -> list[str]:
    """Returns the queries and keys that are compared, turned if they are."""
    values, turn = [], head.turn
    query, key = body.query.site.opened, body.key.site.opened
    for j, channel in enumerate(head.channels.tolist()):
      is_query = head.q_at[j] < len(query)
      is_key = head.k_at[j] < len(key)
      q = f"q{channel}" if is_query else _number(head.q_fixed_J[j])
      k = f"k{channel}" if is_key else _number(head.k_fixed_J[j])
      values.append(f"({q}, {k})")
    if turn is None:
      return values
    pairs = []
    for j, partner in enumerate(turn.partner.tolist()):
      if partner == j:
        pairs.append(values[j])
      elif partner > j:
        number = head.channels[j] % self.program.config.d_head
        both = f"{values[j]}, {values[partner]}"
        pairs.append(f"*turn(h.n, {number}, {both})")
    return pairs

  def _closed_score(self, site, head, body) -> str:
    """Returns the score of a head's other channels, by distance if it is."""
    parts = [_number(np.float32(head.constant))]
    if head.turned_L is not None:
      name = f"{site}.scores.{head.index}"
      self.packed[name] = head.turned_L
      parts.append(f'by_distance(h.n, DATA["{name}"])')
    if body.window is not None:
      parts.append(f"within(h.n, {body.window})")
    return " + ".join(parts[1:] if parts[0] == "0" and parts[1:] else parts)

  def _mlp(self, layer, site, body: program_lib.Mlp) -> list[str]:
    """Returns the functions of a layer's neurons and of its MLP."""
    activation = self.program.config.activation
    reads = self._reads(2 * layer + 1, body.input)
    neurons = body.up.site.opened.tolist()
    calls, functions = {}, []
    for i in neurons:
      name, at = f"neuron{layer}_{i}", neurons.index(i)
      value = f"{activation}({_sums(body.up, i, reads)})"
      if not body.up.weight_SxT[:, body.up.site.is_open][:, at].any():
        calls[i] = value  # It reads nothing: no function of its own.
        continue
      weight_N = body.down.weight_SxT[at, body.down.site.is_open]
      written = [f"r{r}" for r in body.down.site.opened[weight_N != 0]]
      what = ", ".join(written) or "nothing"
      functions.append(f"def {name}(h):  # Writes {what}."[:_WIDTH])
      functions += _wrapped(f"  return {value}")
      calls[i] = f"{name}(h)"
    lines = [f"def mlp{layer}(stream):"]
    lines += self._input(2 * layer + 1, site, body.input)
    if calls:
      lines += self._compete(
        site, "post_act", "n", body.up, calls, f", {activation}"
      )
    sources = [f"n{i}" for i in neurons]
    opened = body.down.site.opened.tolist()
    terms = {i: _terms(body.down, i, sources) for i in opened}
    written = self._write(site, body.down, terms, ["h.n", *sources])
    return functions + lines + written

  def _run(self, steps: list[str]) -> None:
    """Adds the function that runs everything."""
    p, out = self.program, self.program.output
    self._pack_norm("output", out.norm)
    # The unembedding's weights hold the norm's scale; its bias is in theirs.
    self.packed.pop("output.scale", None)
    self.packed.pop("output.bias", None)
    written = [i for i in self.names.written if out.weight_RxC[i].any()]
    rest_RxC = out.weight_RxC.copy()
    rest_RxC[written] = 0
    self.packed["output.rest"] = rest_RxC
    self.packed["output.logit_bias"] = out.bias_C
    lines = [
      "def logits(tokens):  # Of the answers, behind the tokens.",
    ]
    if p.config.positions != "none":
      self.packed["positions"] = np.array(p.config.context_length)
      lines += [
        '  if len(tokens) > DATA["positions"]:',
        '    raise ValueError(f"{len(tokens)} tokens; need at most'
        " {DATA['positions']}\")",
      ]
    embed = '  stream = DATA["embed"][tokens].astype(float)'
    if p.position_LxR is not None:
      self.packed["position"] = p.position_LxR
      embed += ' + DATA["position"][: len(tokens)]'
    lines.append(embed)
    lines += steps
    if not out.is_open.all():
      self.packed["output.is_open"] = out.is_open
      self.packed["output.fixed"] = out.fixed_R
      lines += _wrapped(
        '  stream = np.where(DATA["output.is_open"], stream,'
        ' DATA["output.fixed"])'
      )
    lines += [
      '  x = norm(stream[-1], "output")',
      '  result = x @ DATA["output.rest"] + DATA["output.logit_bias"]',
    ]
    for i in written:
      weights = f",{_GLUE}".join(map(_number, out.weight_RxC[i]))
      line = f"  result += x[{i}]{_GLUE}*{_GLUE}np.array([{weights}])"
      note = f"  # {self.names.at(i, None)}"
      if len(line + note) <= _WIDTH:
        lines.append((line + note).replace(_GLUE, " "))
      else:
        lines += [note, *_wrapped(line)]
    if out.bigram_VxC is not None:
      self.packed["bigram"] = out.bigram_VxC
      lines.append('  result += DATA["bigram"][tokens[-1]]')
    lines.append("  return LOGIT_SCALE * result")
    self.blocks.append("\n".join(lines))
    self.blocks.append(_DECIDE)

  def _tail(self) -> str:
    text = self.tokenizer.to_json()
    self.packed["tokenizer"] = np.frombuffer(text.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **self.packed)
    packed = base64.b85encode(buffer.getvalue()).decode()
    return _TAIL.replace("%s", packed)


_DECIDE = """
def encode(prompt):  # Its tokens.
  tokenizer = tokenizers.Tokenizer.from_str(bytes(DATA["tokenizer"]).decode())
  tokenizer.encode_special_tokens = True
  return tokenizer.encode(prompt, add_special_tokens=False).ids

def decide(prompt):  # The likelier answer, the other, the logit difference.
  score = logits(encode(prompt))
  pair = max(PAIRS, key=lambda pair: np.logaddexp(*score[list(pair)]))
  first, second = sorted(pair, key=lambda i: -score[i])
  return ANSWERS[first], ANSWERS[second], score[first] - score[second]
"""
_TAIL = """
DATA = dict(np.load(io.BytesIO(base64.b85decode("%s"))))
if __name__ == "__main__":
  if len(sys.argv) != 2 or not sys.argv[1]:
    sys.exit(f"usage: python {sys.argv[0]} PROMPT")
  text = "{!r} over {!r}: logit difference {:.4f} nats"
  print(text.format(*decide(sys.argv[1])))
"""


def _shown(tokenizer, token: int) -> str:
  """Returns one token in quotes, on one line."""
  raw = tokenizer.token_bytes(token)
  try:
    return repr(raw.decode())
  except UnicodeDecodeError:
    return repr(raw)


def _number(x) -> str:
  """Returns a literal of six digits; a float32 has seven."""
  return f"{float(x) + 0.0:.6g}"  # No -0.


def _sums(m: program_lib.Map, channel: int, reads: Sequence[str]) -> str:
  """Returns the sum that makes a channel of what is read, by name."""
  at = int(np.searchsorted(m.site.channels, channel))
  groups: dict[str, list[str]] = {}
  for w, read in zip(m.weight_SxT[:, at], reads, strict=True):
    name, _, number = read.rpartition("_r")
    if w:
      groups.setdefault(name, []).append(f"r{number}={_number(w)}")
  sums = [(1, f"h.{name}({', '.join(by)})") for name, by in groups.items()]
  return _joined(sums, m.bias_T[at])


def _terms(m: program_lib.Map, channel: int, sources: Sequence[str]) -> str:
  """Returns the sum that makes a channel of a map, as an expression."""
  at = int(np.searchsorted(m.site.channels, channel))
  weight_S = m.weight_SxT[: len(sources), at]
  products = [
    (w, f"{_number(abs(w))}{_GLUE}*{_GLUE}{source}")
    for w, source in zip(weight_S, sources, strict=True)
    if w
  ]
  return _joined(products, m.bias_T[at])


def _joined(parts: Sequence[tuple[float, str]], bias: float) -> str:
  """Returns the sum of parts, each with the sign of its number, and a bias."""
  if bias or not parts:
    parts = [*parts, (bias, _number(abs(bias)))]
  (first, text), *others = parts
  parts = [f"-{text}" if first < 0 else text]
  parts += [f"{'-' if w < 0 else '+'}{_GLUE}{text}" for w, text in others]
  return " ".join(parts)


def _is_enclosed(text: str) -> bool:
  """Returns whether a statement may be broken at each of its spaces."""
  depth = 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if character == " " and not depth:
      return False
  return True


def _wrapped(text: str, indent: str = "    ") -> list[str]:
  """Returns a statement in lines that fit; continued ones in parentheses."""
  lines = []
  for line in text.split("\n"):
    if len(line) > _WIDTH and not line.startswith("#"):
      start, mark, value = line.partition(" = ")
      if line.startswith("  return "):
        start, mark, value = "  return", " ", line.removeprefix("  return ")
      if mark and not _is_enclosed(value):
        line = f"{start}{mark}({value})"
    lines += textwrap.wrap(
      line,
      _WIDTH,
      subsequent_indent=indent,
      replace_whitespace=False,
      break_long_words=False,
      break_on_hyphens=False,
    )
  return [line.replace(_GLUE, " ") for line in lines]


def describe_claims(criteria: Iterable) -> list[str]:
  """Returns which criteria of a circuit's faithfulness hold and which fail."""
  lines = []
  for text, holds in (("Holds", True), ("Fails", False)):
    found = [
      c.name if holds else f"{c.name} ({c.measured})"
      for c in criteria
      if c.holds == holds
    ]
    if found:
      lines.append(f"{text}: {'; '.join(found)}.")
  return lines
