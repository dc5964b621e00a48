"""Commands: configs from files and flags; bad input is one line, status 2."""

import dataclasses
import json
import pathlib
import re
import shlex
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

# Runs commands, one [name, arguments] a line, in one process.
DRIVER = """
import contextlib, io, json, runpy, sys
from absl import flags
for name, *arguments in json.load(sys.stdin):
  for flag in list(flags.FLAGS.flags_by_module_dict().get(sys.argv[0], ())):
    delattr(flags.FLAGS, flag.name)
  sys.argv = [f"experiments/{name}.py", *arguments]
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      runpy.run_module(f"experiments.{name}", run_name="__main__")
    except SystemExit as e:
      status = e.code
  print(json.dumps([status, err.getvalue(), out.getvalue()]))
"""

COMMANDS = sorted(
  path.parent.name if path.stem == "__main__" else path.stem
  for path in (ROOT / "experiments").rglob("*.py")
  if "cli.run(" in path.read_text() and path.stem != "cli"
)

# Whose configs are of another kind.
KINDS = {
  "bridge": config_lib.BridgeRunConfig,
  "frontier": frontier.FrontierConfig,
}


def run_commands(*commands):
  """Returns [status, standard error, standard output] of each command."""
  done = subprocess.run(
    [sys.executable, "-c", DRIVER],
    cwd=ROOT,
    input=json.dumps(commands),
    capture_output=True,
    text=True,
    check=True,
  )
  return [json.loads(line) for line in done.stdout.splitlines()]


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
      name = path.stem.partition("_")[0]
      cli.load_config(str(path), kind=KINDS.get(name, config_lib.Config))


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
    results = run_commands(
      *(
        ["train", *common, f"--config.{name}={as_text(value)}"]
        for name, value, _ in cases
      )
    )
    self.assertLen(results, len(cases))
    for (name, value, says), (*done, _) in zip(cases, results, strict=True):
      with self.subTest(f"{name}={value}"):
        # As text, 5 is a word like any other where a word is accepted.
        self.check_refusal(*done, *([] if value == 5 else [says]))

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
    missing, no_value, unknown, stray, fields = run_commands(
      ["train", config],
      ["train", config, "--workdir"],
      ["train", *both, "--wrokdir=x"],
      ["train", *both, "train"],
      ["train", "--helpfull"],
    )
    self.check_refusal(*missing[:2], "--workdir is missing; need a directory")
    self.check_refusal(*no_value[:2], "workdir")
    self.check_refusal(*unknown[:2], "wrokdir", "workdir")
    self.check_refusal(*stray[:2], "'train'", "flags as in --help")
    self.assertEqual(fields[:2], [0, ""])
    for field in dataclasses.fields(config_lib.PruneConfig):
      start = f"  prune.{field.name}={field.default!r}: ".partition(",")[0]
      self.assertIn(start, fields[2])
      self.assertNotEmpty(field.metadata["doc"])

  def test_a_missing_flag_says_what_is_needed(self):
    needs = {
      "bridge": "workdir",
      "compile": "circuit",
      "corpus": "out",
      "export": "model",
      "frontier": "workdir",
      "learning": "workdir",
      "plan": "config",
      "prune": "model",
      "report": "out",
      "stress": "circuit",
      "task_docs": "model",
      "tasks": "model",
      "train": "config",
      "verify": "circuit",
      "watch": "prompts",
    }
    free = ["alarms", "benchmark", "combine", "explain", "mutate"]
    free += ["notebooks", "quickstart", "serve", "survive"]
    self.assertCountEqual([*needs, *free], COMMANDS)
    results = run_commands(*([name] for name in needs))
    for name, (*done, _) in zip(needs, results, strict=True):
      with self.subTest(name):
        self.check_refusal(*done, f"error: --{needs[name]} is missing; need ")
    says = "--config is missing; need a Python file with get_config()"
    self.assertIn(says, results[list(needs).index("train")][1])

  def test_every_help_is_a_screen_with_examples_that_fit(self):
    names = [
      "benchmark.__main__" if name == "benchmark" else name for name in COMMANDS
    ]
    results = run_commands(*([name, "--help"] for name in names))
    for name, (status, err, text) in zip(COMMANDS, results, strict=True):
      with self.subTest(name):
        self.assertEqual((status, err), (0, ""))
        self.assertLess(text.count("\n"), 40)
        known = set(re.findall(r"^  --(\w+):", text, re.MULTILINE))
        required = {
          flag
          for flag in known
          if re.search(rf"--{flag}: [^-]*\(required\)", text)
        }
        commands = re.findall(
          rf"^  (python -m experiments\.{name}\b(?:.*\\\n)*.*)$",
          text,
          re.MULTILINE,
        )
        self.assertNotEmpty(commands)
        for command in commands:
          parts = shlex.split(command.replace("\\\n", ""))[3:]
          overrides = [p for p in parts if p.startswith("--config.")]
          flags = dict(
            part.removeprefix("--").partition("=")[::2]
            for part in parts
            if part not in overrides
          )
          self.assertContainsSubset(flags, known)
          self.assertContainsSubset(required, flags)
          kind = KINDS.get(name, config_lib.Config)
          config = flags.get("config")
          cli.load_config(config and str(ROOT / config), overrides, kind)
          shown = re.findall(r"^    (--config\.\S+=\S+);", text, re.MULTILINE)
          self.assertLen(shown, int("config" in known))
          cli.load_config(None, shown, kind)


if __name__ == "__main__":
  absltest.main()
