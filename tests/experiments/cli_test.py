"""Commands: configs from files and flags; bad input is one line, status 2."""

import json
import pathlib
import subprocess
import sys
import tempfile

import config_test
from absl.testing import absltest, parameterized

from experiments import cli
from sparse_jax import config as config_lib
from sparse_jax import frontier
from sparse_jax.utils import errors

ROOT = pathlib.Path(__file__).parents[2]

# Runs the train command once per list of arguments, in one process.
DRIVER = """
import contextlib, io, json, sys
from experiments import cli, train
for arguments in json.load(sys.stdin):
  sys.argv = ["experiments/train.py", *arguments]
  text = io.StringIO()
  with contextlib.redirect_stderr(text):
    try:
      cli.run(train.main, train.__doc__)
    except SystemExit as e:
      print(json.dumps([e.code, text.getvalue()]))
"""


def as_text(value):
  return value if isinstance(value, str) else repr(value)


class TemporaryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def config_file(self, body="c.seed = 7", name="config.py"):
    path = self.root / name
    path.write_text(
      "import ml_collections\n\ndef get_config():\n"
      f"  c = ml_collections.ConfigDict()\n  {body}\n  return c\n"
    )
    return str(path)


class LoadConfigTest(TemporaryTest):
  @parameterized.named_parameters(
    ("int", "train.steps=12", 12),
    ("int_with_underscores", "train.steps=1_000", 1000),
    ("float", "train.learning_rate=3e-4", 3e-4),
    ("float_of_int", "train.learning_rate=1", 1.0),
    ("string", "model.activation=relu", "relu"),
    ("string_of_digits", "data.source=123", "123"),
    ("string_with_equals", "data.source=a=b c", "a=b c"),
    ("true", "model.tied=true", True),
    ("python_true", "model.tied=True", True),
    ("false", "model.bias=FALSE", False),
    ("names", "prune.sites=attn.q,attn.k", ("attn.q", "attn.k")),
    ("one_name", "tasks=bracket_counting", ("bracket_counting",)),
    ("quoted_names", "prune.sites=('attn.q',)", ("attn.q",)),
    ("numbers", "prune.k_coefs=1e-3,2", (1e-3, 2.0)),
    ("list", "prune.k_coefs=[0.5]", (0.5,)),
  )
  def test_override_of_every_type(self, override, want):
    c = cli.load_config(self.config_file(), [f"--config.{override}"])
    self.assertEqual(c.seed, 7)
    for part in override.partition("=")[0].split("."):
      c = getattr(c, part)
    self.assertEqual(c, want)
    self.assertIs(type(c), type(want))

  def test_the_last_override_wins_over_the_file(self):
    c = cli.load_config(
      self.config_file(), ["--config.seed=1", "--config.seed=2"]
    )
    self.assertEqual(c.seed, 2)

  def test_a_group_in_the_file_keeps_its_other_fields(self):
    path = self.config_file('c.model = {"d_model": 64, "n_layer": 1}')
    c = cli.load_config(path, ["--config.model.n_layer=3"])
    self.assertEqual((c.model.d_model, c.model.n_layer), (64, 3))

  @parameterized.named_parameters(
    ("no_value", "--config.seed", "has no value; need --config.seed=VALUE"),
    ("field_of_a_field", "--config.seed.x=3", "seed is a single field"),
    ("no_name", "--config.=3", "unknown field ''"),
    ("field_of_a_word", "--config.model.norm.x=3", "model.norm={'x': 3}"),
  )
  def test_unusable_override(self, override, message):
    with self.assertRaisesRegex(errors.InputError, message):
      cli.load_config(self.config_file(), [override])

  @parameterized.named_parameters(
    ("syntax", "def get_config(:", "SyntaxError"),
    ("no_function", "x = 1", "AttributeError"),
    ("raises", "def get_config(): return 1 / 0", "ZeroDivisionError"),
    ("import", "import no_such_module", "ModuleNotFoundError"),
    ("dict", "def get_config(): return {}", "returned dict"),
    ("locked", None, "KeyError|did you mean"),
  )
  def test_unusable_file(self, text, message):
    path = self.config_file("c.modle = {'d_model': 3}")
    if text is not None:
      pathlib.Path(path).write_text(text)
    with self.assertRaisesRegex(errors.InputError, message) as e:
      cli.load_config(path)
    self.assertNotIn("\n", str(e.exception))

  def test_files_that_are_not_python(self):
    for path in (self.root / "absent.py", self.root):
      with self.assertRaisesRegex(errors.InputError, "no such file") as e:
        cli.load_config(str(path))
      self.assertIn(str(path), str(e.exception))
    with self.assertRaisesRegex(errors.InputError, "not a .py file"):
      cli.load_config(self.config_file(name="config.txt"))

  def test_own_configs(self):
    for path in (ROOT / "experiments" / "configs").glob("[!_]*.py"):
      kind = config_lib.Config
      if path.name.startswith("frontier"):
        kind = frontier.FrontierConfig
      cli.load_config(str(path), kind=kind)


class CommandTest(TemporaryTest):
  def check_refusal(self, status, text, *words):
    self.assertEqual(status, 2, text)
    self.assertTrue(text.startswith("error: ") and text.endswith("\n"), text)
    self.assertEqual(text.count("\n"), 1, text)
    for word in words:
      self.assertIn(word, text)
    self.assertFalse((self.root / "run").exists())

  def test_every_refused_field(self):
    cases = [*config_test.REFUSED, *config_test.REFUSED_ELSEWHERE]
    common = [f"--config={self.config_file()}", f"--workdir={self.root}/run"]
    done = subprocess.run(
      [sys.executable, "-c", DRIVER],
      cwd=ROOT,
      input=json.dumps(
        [
          [*common, f"--config.{name}={as_text(value)}"]
          for name, value, _ in cases
        ]
      ),
      capture_output=True,
      text=True,
      check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    self.assertLen(results, len(cases))
    for (name, value, says), (status, text) in zip(cases, results, strict=True):
      with self.subTest(f"{name}={value}"):
        # As text, 5 is a word like any other where a word is accepted.
        self.check_refusal(status, text, *([] if value == 5 else [says]))

  def test_process_ends_with_status_2(self):
    done = subprocess.run(
      [
        *(sys.executable, "-m", "experiments.train"),
        f"--config={self.config_file()}",
        f"--workdir={self.root}/run",
        "--config.sparsity.density=1.5",
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.check_refusal(
      done.returncode,
      done.stderr,
      "sparsity.density=1.5 is not accepted",
      "above 0 and at most 1",
    )
    self.assertEqual(done.stdout, "")

  def test_flags(self):
    config = f"--config={self.config_file()}"
    both = [config, f"--workdir={self.root}/run"]
    runs = [
      ["--help"],
      [config],
      [config, "--workdir"],
      [*both, "--wrokdir=x"],
      [*both, "train"],
    ]
    done = subprocess.run(
      [sys.executable, "-c", DRIVER],
      cwd=ROOT,
      input=json.dumps(runs),
      capture_output=True,
      text=True,
      check=True,
    )
    *shown, help_, missing, no_value, unknown, stray = done.stdout.splitlines()
    self.assertEqual(json.loads(help_), [0, ""])
    self.assertIn("--config.FIELD=VALUE", "\n".join(shown))
    self.check_refusal(*json.loads(missing), "workdir")
    self.check_refusal(*json.loads(no_value), "workdir")
    self.check_refusal(*json.loads(unknown), "wrokdir", "workdir")
    self.check_refusal(*json.loads(stray), "'train'", "flags as in --help")


if __name__ == "__main__":
  absltest.main()
