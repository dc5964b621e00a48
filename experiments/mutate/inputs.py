"""What is mutated, how, and who reads it.

Every kind has good files to start from; half of its inputs have their bytes
changed, half what the bytes mean.
"""

import dataclasses
import functools
import io
import json
import pathlib
import pprint
import random
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from experiments import cli
from experiments.mutate import mutations
from sparse_jax import checkpoint, sites
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import corpus, sources, tokens
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import compact, edges, fingerprint, transformer
from sparse_jax.tasks import user

Files = Mapping[str, bytes]  # By path inside the input's directory.
_GOLDEN = pathlib.Path("tests/golden")
_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w} + 1\n"
  for w in ("alpha", "beta", "gamma", "delta")
)
_DATA = {"vocab_size": 300, "context_length": 8, "eval_fraction": 0.5}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of input.

  Attributes:
    bases: makes the good inputs to start from.
    changes: by a file name's end, what changes its meaning.
    read: reads an input's directory; raises InputError or nothing.
    runs_code: whether reading it is running it, as with configs in Python.
  """

  bases: Callable[[], Sequence[Files]]
  changes: Mapping[str, mutations.Mutation]
  read: Callable[[pathlib.Path], object]
  runs_code: bool = False


def make(name: str, seed: int, number: int) -> dict[str, bytes]:
  """Returns the files of an input, which depend on nothing but these three."""
  rng = random.Random(f"{name} {seed} {number}")
  made = dict(rng.choice(good(name)))
  path = rng.choice(sorted(made))
  change = mutations.mutate_bytes
  if number % 2:
    ends = KINDS[name].changes
    path = rng.choice([p for p in sorted(made) if p.endswith(tuple(ends))])
    change = next(change for end, change in ends.items() if path.endswith(end))
  made[path] = change(rng, made[path])
  return made


@functools.cache
def good(name: str) -> Sequence[Files]:
  """Returns the good inputs of a kind."""
  return KINDS[name].bases()


def _directory(path: pathlib.Path) -> Files:
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in sorted(path.rglob("*"))
    if p.is_file() and p.name != "expected.npz"
  }


@functools.cache
def _tokenizer() -> tokenizer_lib.Tokenizer:
  return tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)


@functools.cache
def _model() -> tuple[transformer.Model, transformer.Params]:
  config = config_lib.ModelConfig(
    n_layer=1,
    d_model=16,
    d_head=8,
    d_mlp=16,
    vocab_size=_tokenizer().vocab_size,
    context_length=16,
    bigram="none",
  )
  model = transformer.Model(config, config_lib.SparsityConfig(min_alive=0))
  params = jax.device_get(model.init(jax.random.key(0)))
  return model, compact.rounded(params)


def _means(model: transformer.Model) -> dict[str, np.ndarray]:
  return {
    name: np.ones(model.config.site_shape(name), np.float32)
    for name in sites.LAYER_NODE_SITES
  }


def _saved(save: Callable[[pathlib.Path], None]) -> Files:
  with tempfile.TemporaryDirectory() as root:
    save(pathlib.Path(root) / "made")
    return _directory(pathlib.Path(root) / "made")


def _models() -> Sequence[Files]:
  model, params = _model()
  rest = _tokenizer(), config_lib.Config(), _means(model)
  save = lambda path: checkpoint.save_model(
    path, model, params, *rest, is_compact=True
  )
  return [_saved(save)]


def _circuits() -> Sequence[Files]:
  model, params = _model()
  mask = {n: m.astype(bool) & False for n, m in _means(model).items()}
  for rows in mask.values():
    rows[:, :6] = True
  found = edges.find_edges(params, mask)
  size = sum(int(rows.sum()) for rows in mask.values())
  circuit = circuit_lib.Circuit(
    task="single_double_quote",
    model_fingerprint=fingerprint.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.15,
    logit_scale=1.0,
    node_mask=mask,
    means=_means(model),
    edges=found,
    metrics={"num_nodes": size, "num_edges": len(found)},
  )
  return [_saved(lambda path: circuit.save(path, robust=circuit))]


def _read_model(path: pathlib.Path) -> None:
  checkpoint.load_model(path)
  checkpoint.load_run(path)
  if checkpoint.has_tokenizer(path):
    checkpoint.load_tokenizer(path)
  if (path / "means.npz").exists():
    checkpoint.load_means(path)


def _configs() -> Sequence[Files]:
  return [{"config.py": _config_text(config_lib.to_dict(config_lib.Config()))}]


def _config_text(values) -> bytes:
  body = pprint.pformat(values, width=100)
  return (
    "import ml_collections\n\n\ndef get_config():\n"
    f"  return ml_collections.ConfigDict({body})\n"
  ).encode("utf-8", "replace")


def _mutate_config(rng: random.Random, raw: bytes) -> bytes:
  del raw
  values = config_lib.to_dict(config_lib.Config())
  for _ in range(rng.choice((1, 1, 2))):
    values = mutations.mutate_value(rng, values)
  text = _config_text(values).decode()
  # Numbers that JSON has and Python has not.
  return f"nan, inf = float('nan'), float('inf')\n{text}".encode()


def _tokenizers() -> Sequence[Files]:
  letters = sorted(tokenizer_lib._BYTE_OF)
  merges = ["a l", "b e", "al p", "r e"]
  names = [*letters, *(merge.replace(" ", "") for merge in merges)]
  vocab = {name: i for i, name in enumerate(names)}
  released = {
    "encoder.json": json.dumps(vocab).encode(),
    "vocab.bpe": "\n".join(["#version: 0.2", *merges]).encode(),
  }
  return [{"tokenizer.json": _tokenizer().to_json().encode()}, released]


def _read_tokenizer(path: pathlib.Path) -> None:
  file = path / "tokenizer.json"
  load = tokenizer_lib.Tokenizer
  made = load.load(file) if file.exists() else load.load_released(path)
  made.decode(made.encode(_TEXT))
  made.encode_batch([_TEXT])
  made.token_text(made.vocab_size - 1)
  made.to_json()


def _tasks() -> Sequence[Files]:
  lines = [
    {
      "prompt": f"x = ['{word}{i}",
      "answer": "'",
      "counter_prompt": f'x = ["{word}{i}',
      "counter_answer": '"',
      "split": split,
    }
    for split, word in (("train", "a"), ("validation", "b"), ("test", "c"))
    for i in range(4)
  ]
  return [{"own.jsonl": "\n".join(map(json.dumps, lines)).encode()}]


def _read_task(path: pathlib.Path) -> None:
  task = user.load(str(path / "own.jsonl"), _tokenizer())
  for split in ("train", "validation", "test"):
    task.pairs(split, 2, at_most=True)


def _data_config(source: pathlib.Path | str) -> config_lib.DataConfig:
  return config_lib.DataConfig(**{**_DATA, "source": str(source)})


def _corpora() -> Sequence[Files]:
  python = {f"code/{i}.py": f"# {i}\n{_TEXT}".encode() for i in range(4)}
  rows = [json.dumps({"text": f"{i}\n{_TEXT}"}) for i in range(6)]
  lines = {"rows.jsonl": "\n".join(rows).encode()}
  listing = "a==1.0 --hash=sha256:" + "0" * 64 + "  # MIT\n"
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, raw in python.items():
      archive.writestr(name, raw, zipfile.ZIP_DEFLATED)
  with tempfile.TemporaryDirectory() as root:
    source = pathlib.Path(root) / "rows.jsonl"
    source.write_bytes(lines["rows.jsonl"])
    made = pathlib.Path(root) / "tokens"
    tokens.prepare(_data_config(source), made, batch_size=2, progress=False)
    prepared = _directory(made)
  manifest = json.loads(prepared["manifest.json"])
  manifest["config"]["source"] = "rows.jsonl"
  prepared["manifest.json"] = json.dumps(manifest).encode()
  return [
    python,
    lines,
    {"corpus.txt": listing.encode()},
    {"wheel.whl": buffer.getvalue()},
    {f"tokens/{name}": raw for name, raw in prepared.items()},
  ]


def _read_corpus(path: pathlib.Path) -> None:
  source = path / "code" if (path / "code").exists() else path / "rows.jsonl"
  if source.exists():
    for _ in sources.documents(_data_config(source)):
      pass
  if (path / "corpus.txt").exists():
    corpus.read_listing(path / "corpus.txt")
  if (path / "wheel.whl").exists():
    for name, text in corpus.python_files(path / "wheel.whl"):
      corpus.why_dropped(name, text)
  if (path / "tokens").exists():
    config = _data_config("rows.jsonl")
    tokens.prepare(
      config, path / "tokens", batch_size=2, frozen=True, progress=False
    )


def _mutate_wheel(rng: random.Random, raw: bytes) -> bytes:
  return mutations.mutate_zip(rng, raw, mutations.mutate_bytes)


_JSON = {".json": mutations.mutate_json}
KINDS: Mapping[str, Kind] = {
  "released checkpoints": Kind(
    lambda: [_directory(_GOLDEN / n) for n in ("plain", "sweep_style")],
    {".pt": mutations.mutate_pt, **_JSON},
    _read_model,
  ),
  "Hugging Face directories": Kind(
    lambda: [_directory(p) for p in sorted((_GOLDEN / "hf").iterdir())],
    {".safetensors": mutations.mutate_safetensors, **_JSON},
    _read_model,
  ),
  "model directories": Kind(
    _models, {".npz": mutations.mutate_npz, **_JSON}, _read_model
  ),
  "circuits": Kind(
    _circuits,
    {".npz": mutations.mutate_npz, **_JSON},
    circuit_lib.load_all,
  ),
  "configs": Kind(
    _configs,
    {".py": _mutate_config},
    lambda path: cli.load_config(str(path / "config.py")),
    runs_code=True,
  ),
  "tokenizers": Kind(
    _tokenizers, {**_JSON, ".bpe": mutations.mutate_bytes}, _read_tokenizer
  ),
  "task files": Kind(_tasks, {".jsonl": mutations.mutate_lines}, _read_task),
  "corpora": Kind(
    _corpora,
    {
      ".jsonl": mutations.mutate_lines,
      ".whl": _mutate_wheel,
      ".py": mutations.mutate_bytes,
      ".txt": mutations.mutate_bytes,
      ".bin": mutations.mutate_bytes,
      **_JSON,
    },
    _read_corpus,
  ),
}
