"""The notebooks run from top to bottom, and their files are fit to read."""

import email
import json
import pathlib
import re

import helpers
import jax
import pytest

import sparse_jax as sj
from experiments.notebooks import __main__ as command
from experiments.notebooks import execute
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib

TASK = "single_double_quote"
_SETTINGS = {
  "steps": 4,
  "batch_size": 4,
  "k_coefs": (1e-3,),
  "num_runs": 1,
  "num_seeds": 0,
  "robust_k_coefs": (1e-3,),
  "num_robust_runs": 1,
  "edge_steps": 2,
  "outside_steps": 2,
  "num_train": 16,
  "num_validation": 8,
  "num_test": 8,
}
_SOURCE = str(pathlib.Path(email.__file__).parent / "*.py")
_CONFIG = {
  "data": {"source": _SOURCE, "vocab_size": 600, "context_length": 16},
  "model": {"d_model": 16, "d_head": 8, "d_mlp": 16},
  "sparsity": {"density": 0.2, "min_alive": 2},
  "train": {"steps": 6, "batch_size": 8, "eval_every": 3, "eval_batches": 1},
  "prune": {"mean_batches": 1},
}
needs_nbclient = pytest.mark.skipif(
  execute.nbclient is None,
  reason="needs nbclient and ipykernel: pip install 'sparse_jax[notebooks]'",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A directory with an untrained model and a circuit of some of its nodes."""
  root = tmp_path_factory.mktemp("notebooks")
  text = "x = ['name', \"value\", (key, [item])]\ndef f():\n  return 'delta'\n"
  tokenizer = tokenizer_lib.Tokenizer.train([text] * 4, 320)
  config = config_lib.ModelConfig(
    d_model=16,
    d_head=4,
    d_mlp=16,
    vocab_size=tokenizer.vocab_size,
    context_length=64,
  )
  model = sj.Model(config, config_lib.SparsityConfig(min_alive=0))
  params = jax.device_get(model.init(jax.random.key(0)))
  means = helpers.random_means(model)
  sj.save_model(root / "model", model, params, tokenizer, means=means)
  mask = helpers.random_masks(model, 0.1)
  edges = edges_lib.find_edges(params, mask)
  example = {"answer": "'", "counter_answer": '"'}
  circuit = sj.Circuit(
    task=TASK,
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.15,
    logit_scale=1.0,
    node_mask=mask,
    means=means,
    edges=edges,
    metrics={},
    details={"examples": [example]},
  )
  circuit.metrics.update(num_nodes=len(circuit.nodes), num_edges=len(edges))
  circuit.save(root / "circuits" / TASK)
  return root


def parameters_of(name: str, root: pathlib.Path):
  """Returns the settings that make a notebook quick."""
  model = str(root / "model")
  return {
    "first_circuit": {"MODEL": model, "CIRCUITS": str(root / "circuits")},
    "train_sparse": {"CONFIG": _CONFIG, "SETTINGS": _SETTINGS},
    "your_own_task": {
      "MODEL": model,
      "SETTINGS": _SETTINGS,
      "UNLEARNED": True,
    },
  }[name]


def outputs_of(notebook):
  """Yields every output of a notebook."""
  for cell in notebook.cells:
    yield from cell.get("outputs", ())


@needs_nbclient
@pytest.mark.parametrize(
  "name, shown",
  [
    ("first_circuit", ("<iframe", "goes on with", "patched", "treescope")),
    ("train_sparse", ("step 6: held-out", "guessing costs", "<iframe")),
    ("your_own_task", ("320 pairs", "accuracy", "<iframe", "criteria hold")),
  ],
)
def test_a_notebook_runs(name, shown, run, tmp_path):
  notebook = execute.read(name)
  done = execute.execute(notebook, parameters_of(name, run), tmp_path)
  assert len(done.cells) == len(notebook.cells)
  assert not [o for o in outputs_of(done) if o.output_type == "error"]
  text = json.dumps([*outputs_of(done)])
  for part in shown:
    assert part in text, part
  # What is kept names no directory, and is no larger than a page may be.
  kept = json.dumps([*outputs_of(execute.plain(done))])
  assert "<iframe" not in kept and str(tmp_path) not in kept
  assert "image/png" in kept
  assert len(kept) < 3_000_000


def test_there_are_three_notebooks():
  assert execute.NAMES == ("first_circuit", "train_sparse", "your_own_task")


@pytest.mark.parametrize("name", execute.NAMES)
def test_the_file_of_a_notebook_is_plain(name):
  raw = (execute.DIRECTORY / f"{name}.ipynb").read_text()
  assert len(raw) < 1_000_000
  notebook = json.loads(raw)
  code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
  outputs = [o for cell in code for o in cell["outputs"]]
  for output in outputs:
    assert output["output_type"] != "error"
    assert output.get("name") != "stderr"
  text = json.dumps(outputs)
  assert not re.search(r"/home/|/tmp/|/root/|/work/|/Users/|Warning", text)
  # Every cell reads short, and prose stands before it.
  assert notebook["cells"][0]["source"][0].startswith("# ")
  assert all(len(cell["source"]) <= 35 for cell in code)


def test_all_install_the_same_way_and_only_where_it_is_missing():
  firsts = set()
  for name in execute.NAMES:
    notebook = json.loads((execute.DIRECTORY / f"{name}.ipynb").read_text())
    first = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    firsts.add("".join(first["source"]))
  (source,) = firsts
  assert 'find_spec("sparse_jax") is None' in source
  assert "%pip install" in source


@needs_nbclient
def test_a_failing_cell_is_one_line_and_so_is_an_unknown_parameter(tmp_path):
  new = execute.nbformat.v4
  settings = new.new_code_cell("A = 1", metadata={"tags": ["parameters"]})
  cells = [settings, new.new_code_cell("raise ValueError(f'A is {A}')")]
  notebook = new.new_notebook(cells=cells)
  with pytest.raises(sj.InputError, match=r"ValueError: A is 2$"):
    execute.execute(notebook, {"A": 2}, tmp_path)
  with pytest.raises(sj.InputError, match="unknown parameter 'B'"):
    execute.execute(notebook, {"B": 2}, tmp_path)
  with pytest.raises(sj.InputError, match="unknown notebook 'x'"):
    execute.read("x")


@needs_nbclient
def test_plain_keeps_what_a_reader_needs():
  new = execute.nbformat.v4
  result = lambda data: new.new_output("display_data", data)
  cell = new.new_code_cell(
    "x",
    execution_count=7,
    metadata={"execution": {"iopub.status.busy": "2026"}, "tags": ["a"]},
    outputs=[
      new.new_output("stream", name="stderr", text="training: 100%"),
      new.new_output("stream", name="stdout", text="a line"),
      result({"text/html": "x" * 10**6, "text/plain": "Page"}),
      result({"text/html": "<table></table>", "text/plain": "Model"}),
    ],
  )
  (found,) = execute.plain(new.new_notebook(cells=[cell])).cells
  assert found.execution_count == 1
  assert found.metadata == {"tags": ["a"]}
  line, page, table = found.outputs
  assert line.text == "a line"
  assert page.data == {"text/plain": "Page"}
  assert set(table.data) == {"text/html", "text/plain"}


def test_a_parameter_of_the_command_is_a_path_a_literal_or_text(tmp_path):
  assert command.parameter(f"MODEL={tmp_path}") == ("MODEL", str(tmp_path))
  assert command.parameter("STEPS=100") == ("STEPS", 100)
  assert command.parameter("MODEL=reference") == ("MODEL", "reference")
  with pytest.raises(sj.InputError, match="NAME=VALUE"):
    command.parameter("STEPS")
