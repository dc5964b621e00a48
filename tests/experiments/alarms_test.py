"""The commands watch, alarms and combine, on a small model of its own code."""

import json
import pathlib
import subprocess
import sys
import tempfile

import small_monitor
from absl.testing import absltest

from sparse_jax import checkpoint
from sparse_jax import config as config_lib

_ROOT = pathlib.Path(__file__).parents[2]


def run(command, *flags, text=None):
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{command}", *flags],
    cwd=_ROOT,
    capture_output=True,
    input=text,
    text=True,
    check=False,
  )


class CommandsTest(absltest.TestCase):
  def test_alarms_are_fitted_kept_and_sounded(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    _, circuit, params = small_monitor.watched()
    (root / "code").mkdir()
    for i in range(24):
      lines = [f"v = 'a{i}{j}'\nw = \"b{j}\"\n" for j in range(40)]
      (root / "code" / f"{i}.py").write_text("".join(lines))
    config = config_lib.to_config_dict()
    config.data.update(
      source=str(root / "code"), eval_fraction=0.7, clean=False
    )
    checkpoint.save_model(
      root / "model",
      circuit.model,
      params,
      small_monitor.TOKENIZER,
      run=config_lib.from_config_dict(config),
    )
    circuit.save(root / "circuits" / "quotes")
    flags = f"--model={root / 'model'}", f"--circuits={root / 'circuits'}"
    few = "--count=200", "--windows=64", "--rate=0.25"
    out = f"--out={root / 'out.json'}", f"--thresholds={root / 'all.json'}"
    done = run("alarms", *flags, *few, *out, "--fit")
    self.assertEqual(done.returncode, 0, done.stderr)
    found = json.loads((root / "out.json").read_text())
    [kinds] = found["worth"].values()
    self.assertIn("decisions", kinds)
    self.assertGreater(kinds["anywhere"]["num_applies"], 0)
    self.assertGreater(found["throughput"]["code"]["ratio"], 0)
    stored = json.loads((root / "circuits/quotes/watch.json").read_text())
    self.assertEqual(
      stored["core"], json.loads((root / "all.json").read_text())[circuit.task]
    )
    done = run("watch", *flags, "--prompts=-", text='"x = 1"\nx\n')
    self.assertEqual((done.returncode, done.stderr), (0, ""))
    first, second = map(json.loads, done.stdout.splitlines())
    self.assertIsInstance(first["circuits"][0]["alarms"], list)
    self.assertIn("line 2", second["error"])

    # The circuit of one task alone, and a page of it.
    page = f"--page={root / 'page.html'}"
    few = "--tasks=single_double_quote", "--pairs=4"
    done = run("combine", *flags, *few, page)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("no two of 1 circuits share more than chance", done.stdout)
    self.assertIn('id="without"', (root / "page.html").read_text())


if __name__ == "__main__":
  absltest.main()
