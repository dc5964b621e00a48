"""Trains a sparse model bridged to a frozen dense one, and steers the latter.

  python -m experiments.bridge --dense=runs/dense/model \\
    --config=experiments/configs/bridge_cpu.py --workdir=runs/bridge

The same command again resumes. WORKDIR/bridge then holds both models, the
bridges and their figures. With a circuit of the sparse model:

  python -m experiments.prune --model=runs/bridge/bridge/sparse \\
    --tasks=single_double_quote --workdir=runs/bridge/circuits
  python -m experiments.bridge --steer --workdir=runs/bridge

WORKDIR/steering gets, for each circuit, the dense model's answers while every
node is moved toward the other side of the task, and the share of its logit
difference that the circuit carries over: TASK.json and TASK.html.
"""

import pathlib
from typing import Any

import jax
from absl import flags

from experiments import cli
from sparse_jax import bridge as bridge_lib
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import reference, tasks
from sparse_jax.model import sharding
from sparse_jax.report import charts, page
from sparse_jax.training import loop
from sparse_jax.utils import errors, files, tables

_CONFIG = flags.DEFINE_string(
  "config", None, "A Python file with get_config(); the defaults without one."
)
_DENSE = flags.DEFINE_string(
  "dense", None, "Model directory of the dense model, of any kind."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A directory for the run; the same one resumes it."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the other processes, as experiments.train does."
)
_STEER = flags.DEFINE_bool(
  "steer", False, "Steer the dense model of a bridge in WORKDIR/bridge."
)
_CIRCUIT = flags.DEFINE_string(
  "circuit",
  None,
  "Circuits of the sparse model to steer by; WORKDIR/circuits by default.",
)
_TASK = flags.DEFINE_string(
  "task", None, "The circuit's task, if it is a file of your own."
)
cli.require("workdir")

_PAIRS = 32
_HEADER = "bridge", "map", "explained", "and back", "KL to sparse", "to dense"


def main(overrides: list[str]) -> None:
  """Trains or steers as the flags say."""
  workdir = pathlib.Path(_WORKDIR.value)
  if _STEER.value:
    if overrides:
      raise errors.InputError(
        f"{overrides[0]!r} is not accepted; --steer takes no config"
      )
    steer(workdir)
    return
  if not _DENSE.value:
    raise errors.InputError("--dense is missing; need a model directory")
  config = cli.load_config(_CONFIG.value, overrides, config_lib.BridgeRunConfig)
  if _DISTRIBUTED.value:
    sharding.join_processes()
  bridge = bridge_lib.run(config, _DENSE.value, workdir)
  if jax.process_index() == 0:
    print(figures_text(bridge.figures))
    share = 100 * (1 - loop.block_density(bridge.arrays.sparse))
    print(
      f"held-out loss {bridge.figures['sparse_loss']:.4f} nats a token,"
      f" {bridge.figures['kl_dense_sparse']:.4f} from the dense model; block"
      f" weights {share:.1f}% zero; bridge in {workdir / 'bridge'}"
    )


def figures_text(figures: dict[str, Any]) -> str:
  """Returns the table of every bridge's figures."""
  rows = []
  for of in figures["bridges"]:
    for i, kind in enumerate(("bridge", "linear", "mean")):
      explained = [
        f"{of[kind][f'variance_explained_{way}']:.1%}"
        for way in ("encode", "decode")
      ]
      nats = [f"{of[kind][f'kl_{way}']:.4f}" for way in ("encode", "decode")]
      rows.append(("" if i else of["point"], kind, *explained, *nats))
  return tables.text(_HEADER, rows, left=(0, 1))


def steer(workdir: pathlib.Path) -> None:
  """Writes the steering curves of every circuit."""
  circuits = [_CIRCUIT.value or str(workdir / "circuits")]
  directories = reference.find_circuits(circuits, "--circuit")
  bridge = bridge_lib.Bridge.load(workdir / "bridge")
  for directory in directories:
    circuit = circuit_lib.Circuit.load(directory)
    task = tasks.make_task(_TASK.value or circuit.task, bridge.tokenizer)
    found = bridge_lib.steering_curves(
      bridge, circuit, task.pairs("test", _PAIRS, at_most=True)
    )
    out = workdir / "steering" / circuit.task
    files.write_json(out.with_suffix(".json"), found)
    write_page(out.with_suffix(".html"), found)
    print(f"{headline(found)}\n{steering_text(found)}\n{out}.html")


def headline(found: dict[str, Any]) -> str:
  """Returns what a circuit carries over, in a sentence."""
  of = found["carry_over"]
  shown = lambda kind: f"{of[kind]['value']:.1%}"
  return (
    f"{found['task']}: the circuit's channels carry {shown('share')} of the"
    f" dense model's logit difference of {of['logit_difference']:.2f} nats; as"
    f" many random ones {shown('random')}, all {shown('all')}"
  )


_STEERED = "node", "moved by", "random node", "random direction"


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
  return [
    (node["node"], *(f"{moved:+.3f}" for moved in node["moved"].values()))
    for node in found["nodes"]
  ]


def steering_text(found: dict[str, Any]) -> str:
  """Returns the table of a circuit's nodes, the strongest first."""
  return tables.text(_STEERED, _rows(found)[:12])


def write_page(path: pathlib.Path, found: dict[str, Any]) -> None:
  """Writes a self-contained page with the curves and every node."""
  curves = []
  if found["nodes"]:
    strongest = found["nodes"][0]
    classes = {"node": "circuit", "random_node": "without"}
    curves = [
      charts.Curve(
        strongest["node"] if kind == "node" else kind.replace("_", " "),
        classes.get(kind, "density"),
        list(zip(found["strengths"], values, strict=True)),
        dots=True,
      )
      for kind, values in strongest["probability"].items()
    ]
  text = page.document(
    "steering.html",
    f"Steering by the circuit of {found['task']}",
    headline=headline(found),
    chart=charts.plot(
      "The other answer's probability in the dense model",
      curves,
      "strength",
      "probability",
    ),
    header=[(name, "num" if i else "") for i, name in enumerate(_STEERED)],
    rows=_rows(found),
  )
  files.write_bytes(path, text.encode())


if __name__ == "__main__":
  cli.run(main, __doc__, "bridge.kl_encode=2", config_lib.BridgeRunConfig)
