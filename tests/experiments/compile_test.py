"""The compile command: a file that runs, and one line for what it refuses."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import small_circuits
from absl.testing import absltest

from sparse_jax import checkpoint

_ROOT = pathlib.Path(__file__).parents[2]


def run_compile(*flags):
  return subprocess.run(
    [sys.executable, "-m", "experiments.compile", *flags],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


class CompileTest(absltest.TestCase):
  def test_it_writes_a_program_of_a_saved_circuit(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    circuit, params = small_circuits.make()
    model, tokenizer = circuit.model, small_circuits.TOKENIZER
    checkpoint.save_model(root / "model", model, params, tokenizer)
    directory, out = root / "circuits" / circuit.task, root / "quote.py"
    circuit.save(directory)
    flags = f"--circuit={directory}", f"--out={out}"
    done = run_compile(*flags)
    self.assertEqual(done.returncode, 0, done.stderr)
    text = out.read_text()
    self.assertIn(f"in {text.count(chr(10))} lines", done.stdout)
    answered = subprocess.run(
      [sys.executable, str(out), "x = 'alpha"],
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertIn("logit difference", answered.stdout)
    # What stood there stays where a circuit cannot be compiled.
    bare = root / "circuits" / "bare"
    shutil.copytree(directory, bare)
    raw = json.loads((bare / "circuit.json").read_text())
    del raw["examples"]
    (bare / "circuit.json").write_text(json.dumps(raw))
    refused = run_compile(f"--circuit={bare}", f"--out={out}")
    self.assertEqual(refused.returncode, 2)
    self.assertRegex(refused.stderr, "^error: .*has no examples; need .*\n$")
    self.assertEqual(out.read_text(), text)


if __name__ == "__main__":
  absltest.main()
