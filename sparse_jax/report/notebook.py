"""What a notebook shows: a page in a cell, parameters, training as it goes."""

import base64
import dataclasses
import functools
import html
import io
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import transformer
from sparse_jax.report import page, picture
from sparse_jax.utils import errors, tables

_HEIGHT = 720  # Of the page in its cell, in pixels.
_SECONDS = 1.0  # Between two drawings of a training curve.


@dataclasses.dataclass(frozen=True, repr=False)
class Page:
  """The page of one task, as a notebook shows it.

  In a cell it is live; where notebooks are only read, as on GitHub, the drawing
  alone is left, and in a terminal a line.

  Attributes:
    title: what it is about.
    content: the whole page, HTML.
    drawing: a PNG, or None for an empty circuit.
    height: in pixels.
  """

  title: str
  content: str
  drawing: bytes | None
  height: int = _HEIGHT

  def __repr__(self) -> str:
    return f"Page({self.title})"

  def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
    del include, exclude
    shown = {"text/plain": repr(self), "text/html": self._frame()}
    if self.drawing is not None:
      shown["image/png"] = base64.b64encode(self.drawing).decode("ascii")
    return shown

  def _frame(self) -> str:
    # Its scripts run, but reach neither the notebook nor its server. Without a
    # base of its own a link to a section would load the notebook into the cell.
    content = self.content.replace(
      "<head>", '<head><base href="about:srcdoc">', 1
    )
    return (
      f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts"'
      f' style="width: 100%; height: {self.height}px; border: 0"'
      f' srcdoc="{html.escape(content)}"></iframe>'
    )


def show(
  circuit: circuit_lib.Circuit,
  robust: circuit_lib.Circuit | None = None,
  *,
  height: int = _HEIGHT,
) -> Page:
  """Returns the page of a circuit, which a notebook puts into the cell.

  `circuit.show()` is the same. With `robust`, the circuit around it, the page
  is that of both. `height` is in pixels. Raises InputError if a circuit is
  damaged.
  """
  circuits = {"core": circuit}
  if robust is not None:
    circuits["robust"] = robust
  sizes = f"{circuit.num_nodes} nodes, {circuit.num_edges} edges"
  title = f"{circuit.task}: {sizes}"
  content = page.render([circuits], title=circuit.task)
  return Page(title, content, _drawing(circuit), height)


def _drawing(circuit: circuit_lib.Circuit) -> bytes | None:
  if not circuit.num_nodes:
    return None
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, "circuit.png")
    picture.write_picture(path, circuit)
    return path.read_bytes()


def model_table(model: transformer.Model) -> str:
  """Returns a model's shape as a small HTML table."""
  c, s = model.config, model.sparsity
  count = transformer.num_parameters(
    jax.eval_shape(model.init, jax.random.key(0))
  )
  rows = (
    ("layers", c.n_layer),
    ("residual channels", c.d_model),
    ("heads", f"{c.n_head} of {c.d_head} channels"),
    ("MLP neurons", c.width("mlp.post_act")),
    ("tokens of the vocabulary", c.vocab_size),
    ("parameters, zeros included", f"{count:,}"),
    ("block weights that are not zero", f"{s.density:.1%}"),
    ("channels that AbsTopK keeps", f"{s.activation_fraction:.1%}"),
  )
  return tables.html((), rows)


@dataclasses.dataclass(frozen=True, repr=False)
class _Parameters:
  """Parameters as treescope draws them, one square an entry; else as lines."""

  params: transformer.Params

  def __repr__(self) -> str:
    lines = [
      f"{sites.path_name(path)}: {leaf.shape},"
      f" {np.count_nonzero(leaf) / leaf.size:.1%} not zero"
      for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
    ]
    return "\n".join(lines)

  def _repr_html_(self) -> str:
    scope = _treescope()
    with scope.active_autovisualizer.set_scoped(scope.ArrayAutovisualizer()):
      return scope.render_to_html(self.params)


def show_params(
  params: transformer.Params, circuit: circuit_lib.Circuit | None = None
) -> _Parameters:
  """Returns a tree of arrays to unfold in a notebook: zeros have no colour.

  With a circuit of theirs only its edges are left, by matrix. Raises InputError
  if treescope is not installed.
  """
  _treescope()
  if circuit is not None:
    kept = edges_lib.kept_edges(params, circuit.node_mask)
    params = {
      path: np.where(keep, edges_lib.parameter(params, path), 0)
      for path, keep in kept.items()
    }
  return _Parameters(params)


@functools.cache
def _treescope():
  try:
    import treescope  # noqa: PLC0415 (an extra)
  except ImportError:
    raise errors.InputError(
      "treescope is not installed; need pip install 'sparse_jax[notebooks]'"
    ) from None
  return treescope


class TrainingCurve:
  """Loss and density, drawn anew in the cell while training goes on.

  `sj.train(config, workdir, on_log=sj.TrainingCurve())`. Outside a notebook it
  prints a line instead.
  """

  def __init__(self):
    self.rows: list[dict[str, Any]] = []
    self._handle = None
    self._drawn = 0.0

  def __call__(self, row: Mapping[str, Any]) -> None:
    """Takes one row of metrics.jsonl."""
    self.rows.append(dict(row))
    now = time.monotonic()
    # The last row always has an evaluation.
    if "eval_loss" not in row and now - self._drawn < _SECONDS:
      return
    self._drawn = now
    if self._handle is not None:
      self._handle.update(self)
    elif (display := _display()) is not None:
      self._handle = display(self, display_id=True)
    else:
      print(repr(self), flush=True)

  def __repr__(self) -> str:
    if not self.rows:
      return "TrainingCurve(no steps yet)"
    row = self.rows[-1]
    loss = row.get("eval_loss", row["train_loss"])
    kind = "held-out" if "eval_loss" in row else "training"
    return (
      f"step {row['step']}: {kind} loss {loss:.2f} nats a token,"
      f" {row['density']:.1%} of block weights not zero"
    )

  def _repr_png_(self) -> bytes:
    from matplotlib import figure  # noqa: PLC0415 (slow to import)

    drawn = figure.Figure(figsize=(6.4, 2.6), layout="constrained")
    left = drawn.subplots()
    right = left.twinx()
    for axes, name, style, label in (
      (right, "density", "C1", "density"),
      (left, "train_loss", "C0", "training loss"),
      (left, "eval_loss", "C0o", "held-out loss"),
    ):
      points = [(r["step"], r[name]) for r in self.rows if name in r]
      if points:
        axes.plot(*zip(*points, strict=True), style, label=label)
    left.set(xlabel="step", ylabel="loss (nats a token)")
    right.set(ylabel="share of weights not zero", ylim=(0, 1.02))
    drawn.legend(loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    # No version or date: the same rows give the same bytes.
    drawn.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def _display():
  """Returns IPython's `display` in a notebook, else None."""
  try:
    import IPython  # noqa: PLC0415 (an extra)
  except ImportError:
    return None
  return IPython.display.display if IPython.get_ipython() else None


# Both classes lie below the page, so what shows them is put on here.
circuit_lib.Circuit.show = show
transformer.Model._repr_html_ = model_table
