"""What the documents show runs: Python blocks as they stand, flags by name."""

import json
import pathlib
import re

import helpers
import jax
import numpy as np
import pytest

import sparse_jax as sj
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TASK = "single_double_quote"


def blocks(path: pathlib.Path, language: str) -> list[str]:
  """Returns a document's code blocks of one language."""
  return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
  """A directory in which a quickstart of two minute layers has run."""
  root = tmp_path_factory.mktemp("readme")
  text = "x = ['alpha', \"beta\", {0}]\ndef gamma():\n  return 'delta'\n"
  tokenizer = tokenizer_lib.Tokenizer.train([text] * 4, 300)
  model = sj.Model(
    config_lib.ModelConfig(
      d_model=16,
      d_head=4,
      d_mlp=16,
      vocab_size=tokenizer.vocab_size,
      context_length=64,
    ),
    config_lib.SparsityConfig(min_alive=0),
  )
  params = jax.device_get(model.init(jax.random.key(0)))
  means = helpers.random_means(model)
  directory = root / "runs" / "quickstart"
  sj.save_model(directory / "model", model, params, tokenizer)
  mask = helpers.random_masks(model, 0.2)
  circuit = helpers.make_circuit(
    model, params, mask, task=TASK, means=means, metrics={"test_loss": 0.1}
  )
  circuit.save(directory / "circuits" / TASK, robust=circuit)
  return root


def test_the_readmes_python_runs(quickstart, monkeypatch, capsys):
  monkeypatch.chdir(quickstart)
  (block,) = blocks(ROOT / "README.md", "python")
  names = {}
  exec(block, names)
  vocabulary = names["model"].config.vocab_size
  assert names["logits"].shape == (1, len(names["tokens"][0]), vocabulary)
  assert list(names["acts"]) == ["0.attn.q"]
  assert TASK in capsys.readouterr().out


def test_an_own_task_runs(quickstart, monkeypatch, capsys):
  monkeypatch.chdir(quickstart)
  generator, use = blocks(ROOT / "docs" / "own_task.md", "python")
  pathlib.Path("my_task.py").write_text(generator)
  exec(use, {})
  assert "A list closes with a bracket" in capsys.readouterr().out


def test_a_circuits_program_runs(quickstart, monkeypatch, capsys):
  monkeypatch.chdir(quickstart)
  (block,) = blocks(ROOT / "docs" / "programs.md", "python")
  names = {}
  exec(block, names)
  assert names["logits"].shape[-1] == names["model"].config.vocab_size
  assert str(names["quotes"].num_values) in capsys.readouterr().out


def test_the_pair_of_a_jsonl_task_is_one(quickstart):
  (text,) = blocks(ROOT / "docs" / "own_task.md", "json")
  pair = json.loads(text)
  path = quickstart / "one.jsonl"
  splits = ("train", "validation", "test")
  sides = ("prompt", "counter_prompt")
  # One pair for each split, told apart by the variable's name.
  path.write_text(
    "\n".join(
      json.dumps(
        pair
        | {side: pair[side].replace("x", name) for side in sides}
        | {"split": split}
      )
      for name, split in zip("abc", splits, strict=True)
    )
  )
  tokenizer = sj.load_tokenizer(quickstart / "runs" / "quickstart" / "model")
  task = sj.tasks.make_task(str(path), tokenizer)
  assert np.array_equal([len(task.pairs(s, 1)) for s in splits], [1, 1, 1])


def flags_of(command: str) -> set[str]:
  """Returns the flags that a command's module defines."""
  path = ROOT / "experiments" / f"{command}.py"
  if not path.exists():
    path = ROOT / "experiments" / command / "__main__.py"
  assert path.is_file(), f"no command experiments.{command}"
  text = path.read_text()
  return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))


def commands() -> list[tuple[str, str, str]]:
  """Returns (document, command, its arguments) of every shell block."""
  found = []
  for path in DOCUMENTS:
    for block in blocks(path, "(?:sh)?"):
      for line in block.replace("\\\n", " ").splitlines():
        shown = re.search(r"-m experiments\.(\w+)(.*)", line)
        if shown:
          found.append((path.name, shown[1], shown[2].partition("#")[0]))
  return found


def test_the_documents_show_commands():
  assert len(commands()) > 10


@pytest.mark.parametrize("document, command, arguments", commands())
def test_a_shown_command_takes_its_flags(document, command, arguments):
  del document
  known = flags_of(command)
  for flag in re.findall(r"--(no)?(\w+)(\S*)", arguments):
    no, name, rest = flag
    if name == "config" and rest.startswith("."):
      field = rest[1:].partition("=")[0]
      value = config_lib.to_config_dict().to_dict()
      for part in field.split("."):
        assert part in value, f"--config.{field}"
        value = value[part]
      continue
    assert name in known or no + name in known, f"--{no}{name}"


def test_the_tree_of_the_readme_is_the_tree():
  shown = re.findall(
    r"^  (\w+)(?:/|\.py) ", (ROOT / "README.md").read_text(), re.M
  )
  there = {
    p.name.removesuffix(".py") for p in (ROOT / "sparse_jax").iterdir()
  } - {"__init__", "__pycache__"}
  assert set(shown) == there
