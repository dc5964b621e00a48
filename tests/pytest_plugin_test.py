"""The pytest plugin: circuits as tests, which fail where one is lost."""

import importlib.metadata
import json

import pytest
import verified_circuit

from sparse_jax import circuit as circuit_lib
from sparse_jax import faithfulness

# The name of the entry point, too: pytest then registers it once, whether it
# is asked for, installed, or both.
PLUGIN = "pytest_sparse_jax"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """A circuit directory with its evidence; one claim is sure to hold."""
  directory = verified_circuit.write(tmp_path_factory.mktemp("plugin"))
  verified = faithfulness.verify(directory, natural=False, controls=False)
  assert not verified.failures
  circuit = circuit_lib.Circuit.load(directory)
  circuit.metrics["faithfulness"] = dict(verified.again["core"])
  circuit.save(directory)
  return directory


def run(capsys, tmp_path, *args) -> tuple[int, str]:
  """Returns (status, output) of pytest where there are no other tests."""
  alone = ["-p", "no:xdist", "-p", "no:cacheprovider", "--capture=no"]
  alone += ["-p", PLUGIN]
  where = [f"--rootdir={tmp_path}", str(tmp_path)]
  status = pytest.main([*alone, *where, *args])
  return int(status), capsys.readouterr().out


def test_it_is_installed_under_its_own_name():
  points = importlib.metadata.entry_points(group="pytest11")
  assert points[PLUGIN].value == PLUGIN


def test_a_circuit_in_its_own_model_is_a_test_that_passes(
  measured, capsys, tmp_path
):
  # The directory of circuits: each one inside is a test.
  status, out = run(capsys, tmp_path, f"--circuit={measured.parent}", "-v")
  assert status == pytest.ExitCode.OK, out
  assert f"circuit[{measured}] PASSED" in out
  assert "1 passed" in out


def test_a_model_that_lost_a_circuit_fails(measured, capsys, tmp_path):
  raw = json.loads((measured / "circuit.json").read_text())
  scores = raw["metrics"]["faithfulness"]["sufficiency_and_necessity"]
  # As if the circuit had been sufficient in its own model.
  scores["mean_pretrain"]["circuit"]["loss"]["value"] = 0.01
  lost = tmp_path / "circuits" / "lost"
  circuit = circuit_lib.Circuit.load(measured)
  circuit.metrics.update(raw["metrics"])
  circuit.save(lost)
  moved = measured.parents[1] / "moved"
  status, out = run(
    capsys, tmp_path, f"--circuit={lost}", f"--circuit-model={moved}"
  )
  assert status == pytest.ExitCode.TESTS_FAILED, out
  assert "core: sufficient: test loss" in out
  assert "Traceback" not in out and "verification.py" not in out


def test_what_is_no_circuit_is_a_usage_error(capsys, tmp_path):
  status = pytest.main(
    [
      *("-p", "no:xdist", "-p", PLUGIN),
      f"--rootdir={tmp_path}",
      f"--circuit={tmp_path}",
    ]
  )
  assert status == pytest.ExitCode.USAGE_ERROR
  assert "need a circuit directory" in capsys.readouterr().err
