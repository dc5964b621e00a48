"""Pytest plugin: `--circuit DIR` fails where a checkpoint lost a circuit.

  pytest --circuit runs/quickstart/circuits
  pytest --circuit reference --circuit-model runs/tuned/model

Every circuit directory becomes a test that passes if its stored measures
reproduce in their own model, or, in another model of the same shape, if every
claim that held before holds there: `experiments.verify` as a test. Options that
another plugin may have a name for carry a prefix. Nothing is imported before it
is asked for: pytest loads plugins ahead of any conftest.py, which may have to
set JAX up.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds the plugin's options."""
  group = parser.getgroup("sparse_jax", "circuits of sparse_jax")
  group.addoption(
    "--circuit",
    action="append",
    default=[],
    metavar="DIR",
    help="a circuit directory, or one that holds several; repeatable",
  )
  group.addoption(
    "--circuit-model",
    metavar="DIR",
    help="the model that has to have them; the one beside them by default",
  )
  group.addoption(
    "--circuit-natural",
    action="store_true",
    help="also measure held-out real prompts; needs the model's corpus",
  )
  group.addoption(
    "--circuit-controls",
    action="store_true",
    help="also prune the controls again: minutes, and the corpus",
  )


def pytest_collection_modifyitems(
  session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
  """Adds a test for each circuit directory."""
  paths = config.getoption("circuit")
  if not paths:
    return
  from sparse_jax import reference  # noqa: PLC0415 (loads JAX)
  from sparse_jax.utils import errors  # noqa: PLC0415

  try:
    directories = reference.find_circuits(paths, "--circuit")
  except errors.InputError as e:
    raise pytest.UsageError(str(e)) from e
  items += [
    CircuitItem.from_parent(session, name=f"circuit[{d}]", directory=d)
    for d in directories
  ]


class CircuitLost(Exception):
  """A circuit's claims do not hold in the model."""


class CircuitItem(pytest.Item):
  """The test of one circuit directory."""

  def __init__(self, *, directory, **kwargs):
    super().__init__(**kwargs)
    self.directory = directory

  def runtest(self) -> None:
    """Measures the circuits; raises with a line for each lost claim."""
    from sparse_jax import faithfulness  # noqa: PLC0415

    option = self.config.getoption
    verified = faithfulness.verify(
      self.directory,
      option("circuit_model"),
      natural=option("circuit_natural"),
      controls=option("circuit_controls"),
    )
    if verified.failures:
      raise CircuitLost("\n".join(verified.failures))

  def repr_failure(self, excinfo, style=None):
    """Returns lost claims and bad input as lines, without a traceback."""
    from sparse_jax.utils import errors  # noqa: PLC0415

    if excinfo.errisinstance((CircuitLost, errors.InputError)):
      return str(excinfo.value)
    return super().repr_failure(excinfo, style)

  def reportinfo(self):
    """Returns what pytest puts above a failure."""
    return self.directory, None, self.name
