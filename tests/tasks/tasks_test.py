import ast
import builtins
import collections
import dataclasses
import itertools
import json
import keyword
import math
import pathlib
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
import types

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from sparse_jax import tasks
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.tasks import (
  learned,
  natural,
  natural_rules,
  templates,
  user,
  words,
)
from sparse_jax.utils import errors

_FILES = (
  "argparse.py",
  "ast.py",
  "collections/__init__.py",
  "configparser.py",
  "dataclasses.py",
  "difflib.py",
  "doctest.py",
  "inspect.py",
  "logging/__init__.py",
  "optparse.py",
  "os.py",
  "pdb.py",
  "shutil.py",
  "subprocess.py",
  "tarfile.py",
  "typing.py",
  "zipfile.py",
)


def _texts():
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  paths = [root / name for name in _FILES]
  return [p.read_text(encoding="utf-8") for p in paths if p.is_file()]


def _documents(texts):
  return [
    types.SimpleNamespace(text=text, name=str(i))
    for i, text in enumerate(texts)
  ]


def _check_pairs(test, tokenizer, pairs, count):
  """Checks all that holds for pairs of any task in any tokenizer."""
  test.assertLen(pairs, count)
  test.assertLen(set(pairs.prompt_texts + pairs.counter_texts), 2 * count)
  for rows, lengths, texts in (
    (pairs.prompts, pairs.lengths, pairs.prompt_texts),
    (pairs.counter_prompts, pairs.counter_lengths, pairs.counter_texts),
  ):
    test.assertEqual(rows.dtype, np.int32)
    for row, length, text, *answers in zip(
      rows,
      lengths,
      texts,
      pairs.answers,
      pairs.counter_answers,
      strict=True,
    ):
      prompt = row[:length].tolist()
      test.assertEqual(prompt, tokenizer.encode(text))
      test.assertFalse(row[length:].any())
      test.assertNotEqual(*answers)
      for answer in answers:
        whole = text + tokenizer.decode([answer])
        test.assertEqual(tokenizer.encode(whole), [*prompt, answer])


class TasksTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.texts = _texts()
    cls.tokenizer = tokenizer_lib.Tokenizer.train(cls.texts, 2048)
    cls.tasks = {}
    for name in tasks.TASK_NAMES:
      try:
        cls.tasks[name] = tasks.make_task(name, cls.tokenizer)
      except tasks.TaskNotExpressible:
        pass

  def test_twenty_distinct_tasks(self):
    self.assertLen(set(tasks.TASK_NAMES), 20)
    self.assertGreaterEqual(len(self.tasks), 18)
    for name, task in self.tasks.items():
      self.assertEqual(task.name, name)
      self.assertEqual(task.natural_reason == "", task.find_points is not None)

  @parameterized.parameters(*tasks.TASK_NAMES)
  def test_pairs_are_valid_and_splits_share_nothing(self, name):
    if name not in self.tasks:
      self.skipTest("not expressible in this tokenizer")
    seen = {}
    for split in tasks.SPLITS:
      pairs = self.tasks[name].pairs(split, 200, seed=3)
      _check_pairs(self, self.tokenizer, pairs, 200)
      for text in pairs.prompt_texts + pairs.counter_texts:
        self.assertEqual(seen.setdefault(text, split), split)

  @parameterized.parameters(*tasks.TASK_NAMES)
  def test_every_split_has_many_templates(self, name):
    if name not in self.tasks:
      self.skipTest("not expressible in this tokenizer")
    generate = self.tasks[name].generate
    for split, least in zip(tasks.SPLITS, (24, 10, 10), strict=True):
      self.assertGreaterEqual(len(set(generate.templates[split])), least)

  @parameterized.parameters(*tasks.TASK_NAMES)
  def test_splits_share_no_template(self, name):
    if name not in self.tasks:
      self.skipTest("not expressible in this tokenizer")
    generate = self.tasks[name].generate
    home = {}
    for split in tasks.SPLITS:
      self.assertNotEmpty(generate.templates[split])
      for template in generate.templates[split]:
        for text in (template.prompt, template.counter_prompt):
          # The same code with other slot numbers is the same template.
          self.assertEqual(home.setdefault(text.strip(), split), split)
      for line in generate.distractors.get(split, ()):
        self.assertEqual(home.setdefault(line, split), split)

  @parameterized.parameters(*tasks.TASK_NAMES)
  def test_splits_share_no_identifier(self, name):
    if name not in self.tasks:
      self.skipTest("not expressible in this tokenizer")
    task, home = self.tasks[name], {}
    # The language's own names, and those that a task is about.
    common = {*keyword.kwlist, *dir(builtins), "self", "__init__", "np"}
    common |= {"current"} if name == "set_or_string_fixedvarname" else set()
    common |= {"f"} if name == "fstring_brace" else set()
    for split in tasks.SPLITS:
      pairs = task.pairs(split, 300)
      for text in pairs.prompt_texts + pairs.counter_texts:
        for word in set(re.findall(r"[A-Za-z_]\w*", text)) - common:
          self.assertEqual(home.setdefault(word, split), split, word)

  def test_a_thousand_pairs_in_a_second(self):
    for name in ("final_kwarg", "lambda_func"):
      task = self.tasks[name]
      times = []
      for seed in range(3):
        # Of the process, as other work on the machine is not ours to time.
        start = time.process_time()
        self.assertLen(task.pairs("train", 1000, seed), 1000)
        times.append(time.process_time() - start)
      self.assertLess(min(times), 1.0)

  def test_a_word_has_one_split(self):
    home = {}
    for table in words.WORDS.values():
      for split, options in table.items():
        for word in options:
          self.assertEqual(home.setdefault(word, split), split)
    self.assertEqual(set(home.values()), set(tasks.SPLITS))

  @parameterized.parameters("single_double_quote", "bracket_counting")
  def test_main_tasks_have_many_templates_and_like_sides(self, name):
    for split in tasks.SPLITS:
      self.assertGreaterEqual(
        len(self.tasks[name].generate.templates[split]), 6
      )
      pairs = self.tasks[name].pairs(split, 1000)
      # `[[` is two tokens where the tokenizer's text has few.
      brackets = self.tokenizer.encode(" [[") if "bracket" in name else [0]
      np.testing.assert_array_equal(
        pairs.lengths - pairs.counter_lengths, len(brackets) - 1
      )

  def test_quote_sides_differ_in_the_quote_only(self):
    pairs = self.tasks["single_double_quote"].pairs("train", 100)
    for a, b in zip(pairs.prompt_texts, pairs.counter_texts, strict=True):
      self.assertEqual(a.replace("'", '"'), b)
      self.assertEqual((a.count("'"), b.count('"')), (1, 1))
    self.assertEqual(
      self.tokenizer.decode(set(pairs.answers.tolist())),
      self.tasks["single_double_quote"].answers[0],
    )

  def test_sequences_put_sides_one_above_the_other(self):
    pairs = self.tasks["single_double_quote"].pairs("test", 3)
    tokens, positions, correct, incorrect = pairs.sequences()
    for i in range(3):
      for row, side, length in (
        (i, pairs.prompts, pairs.lengths),
        (i + 3, pairs.counter_prompts, pairs.counter_lengths),
      ):
        np.testing.assert_array_equal(tokens[row], side[i])
        self.assertEqual(positions[row], length[i] - 1)
      self.assertEqual(
        (correct[i], incorrect[i]), (incorrect[i + 3], correct[i + 3])
      )
      self.assertEqual(correct[i], pairs.answers[i])

  def test_seed_decides(self):
    task = self.tasks["single_double_quote"]
    first, again, other = (task.pairs("train", 20, seed) for seed in (0, 0, 1))
    self.assertEqual(first.prompt_texts, again.prompt_texts)
    self.assertNotEqual(first.prompt_texts, other.prompt_texts)

  def test_same_pairs_in_another_process(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = folder + "/tokenizer.json"
    self.tokenizer.save(path)
    program = (
      "import sys, json; from sparse_jax import tasks;"
      "from sparse_jax.data.tokenizer import Tokenizer;"
      "t = tasks.make_task('var_if', Tokenizer.load(sys.argv[1]));"
      "print(json.dumps(t.pairs('train', 50, 7).prompts.tolist()))"
    )
    want = self.tasks["var_if"].pairs("train", 50, 7).prompts.tolist()
    for hash_seed in ("1", "2"):
      out = subprocess.run(
        [sys.executable, "-c", program, path],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
      ).stdout
      self.assertEqual(json.loads(out), want)

  def test_pad_to_and_truncate(self):
    task = self.tasks["single_double_quote"]
    whole = task.pairs("train", 10)
    padded = task.pairs("train", 10, pad_to=50)
    self.assertEqual(padded.prompts.shape, (10, 50))
    np.testing.assert_array_equal(padded.lengths, whole.lengths)
    with self.assertRaisesRegex(errors.InputError, "pad_to=4.*at least"):
      task.pairs("train", 10, pad_to=4)
    cut = task.pairs("train", 10, pad_to=4, truncate=True)
    for row, old, n in zip(
      cut.prompts, whole.prompts, whole.lengths, strict=True
    ):
      np.testing.assert_array_equal(row, old[n - 4 : n])

  def test_bad_requests_name_what_is_accepted(self):
    task = self.tasks["single_double_quote"]
    for call, message in (
      (lambda: tasks.make_task("single_quote", self.tokenizer), "did you mean"),
      (lambda: tasks.make_task("no/such.py", self.tokenizer), "existing"),
      (lambda: task.pairs("tests", 1), "did you mean 'test'"),
      (lambda: task.pairs("test", 0), "count=0"),
      (
        lambda: tasks.make_task("with_open", self.tokenizer, 1),
        "difficulty=1.*need 0",
      ),
      (
        lambda: tasks.make_task("bracket_counting", self.tokenizer, -1),
        "difficulty=-1",
      ),
    ):
      with self.assertRaisesRegex(errors.InputError, message):
        call()

  def test_too_many_pairs_says_how_many_there_are(self):
    task = tasks.make_task("single_double_quote", self.tokenizer)
    generate = templates.Generator(
      {"train": [templates.Template("f('<a>", 'f("<a>', "')", '")')]},
      {"a": {"train": ("x", "y", "z")}},
    )
    task = tasks.Task("three", "", task.answers, self.tokenizer, generate)
    self.assertLen(task.pairs("train", 3), 3)
    with self.assertRaisesRegex(errors.InputError, "count=4.*at most 3, "):
      task.pairs("train", 4)
    self.assertLen(task.pairs("train", 4, at_most=True), 3)
    self.assertLen(task.pairs("train", 2, at_most=True), 2)
    with self.assertRaisesRegex(errors.InputError, "at most 0, "):
      none = dataclasses.replace(task, generate=lambda split, key: iter(()))
      none.pairs("train", 4, at_most=True)

  @parameterized.parameters(
    name
    for name in tasks.TASK_NAMES
    if name in ("single_double_quote", "bracket_counting", "set_or_string")
    or name in ("var_if", "bracket_brace")
  )
  def test_difficulty_puts_lines_before_the_prompt(self, name):
    easy = tasks.make_task(name, self.tokenizer)
    hard = tasks.make_task(name, self.tokenizer, difficulty=2)
    for split in tasks.SPLITS:
      lines = [
        max(text.count("\n") for text in task.pairs(split, 50).prompt_texts)
        for task in (easy, hard)
      ]
      self.assertEqual(lines[1] - lines[0], 2)
      for text in hard.pairs(split, 50).prompt_texts:
        ast.parse(textwrap.dedent("\n".join(text.split("\n")[:2])))
      _check_pairs(self, self.tokenizer, hard.pairs(split, 50), 50)

  def test_a_task_that_cannot_be_stated_is_skipped(self):
    tokenizer = tokenizer_lib.Tokenizer.train([], 257)
    names = ["single_double_quote", "indent_for"]
    made, skipped = tasks.make_tasks(names, tokenizer)
    self.assertEqual([task.name for task in made], names[:1])
    self.assertEqual(list(skipped), names[1:])
    self.assertIn("cannot be stated", skipped["indent_for"])
    with self.assertRaisesRegex(errors.InputError, "'indent_for' cannot be"):
      tasks.make_tasks(names[1:], tokenizer)

  def test_bytes_alone_fall_back_or_say_what_fails(self):
    tokenizer = tokenizer_lib.Tokenizer.train([], 257)
    self.assertEqual(
      tasks.make_task("single_double_quote", tokenizer).answers, ("'", '"')
    )
    with self.assertRaisesRegex(
      tasks.TaskNotExpressible, r"'indent_for'.*' ' \* 7, ' ' \* 3"
    ):
      tasks.make_task("indent_for", tokenizer)

  @hypothesis.settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
  )
  @hypothesis.given(
    st.integers(257, 1500),
    st.sets(st.integers(0, len(_FILES) - 2), min_size=1, max_size=3),
    st.lists(st.sampled_from(tasks.TASK_NAMES), min_size=3, max_size=3),
    st.sampled_from(tasks.SPLITS),
    st.integers(0, 1000),
  )
  def test_invariants_in_any_tokenizer(self, size, files, names, split, seed):
    tokenizer = tokenizer_lib.Tokenizer.train(
      [self.texts[i % len(self.texts)][:40_000] for i in files], size
    )
    for name in names:
      try:
        task = tasks.make_task(name, tokenizer)
      except tasks.TaskNotExpressible as error:
        self.assertRegex(str(error), f"{name}.*tokenizer.*: '.*need")
        continue
      # Few answers may be single tokens: take what there is.
      for count in (20, 1):
        try:
          pairs = task.pairs(split, count, seed)
          break
        except errors.InputError as error:
          self.assertIn("at most", str(error))
      _check_pairs(self, tokenizer, pairs, count)


class GateTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.1, 1.0, 0.15, True, "^$"),
    (0.3, 0.9, 0.15, True, "^$"),
    (0.31, 0.9, 0.15, False, "loss 0.310, above 0.3"),
    (0.31, 0.9, 0.2, True, "^$"),
    (0.3, 0.89, 0.15, False, "accuracy 0.890, below 0.9"),
    (0.7, 0.5, 0.15, False, "accuracy 0.500.*loss 0.700"),
    (math.nan, 1.0, 0.15, False, "loss nan"),
    (0.1, math.nan, 0.15, False, "accuracy nan"),
  )
  def test_verdict(self, loss, accuracy, target, passes, reasons):
    verdict = learned.LearnedCheck(loss, accuracy, target)
    self.assertEqual(verdict.learned, passes)
    self.assertRegex("; ".join(verdict.reasons), reasons)
    self.assertEqual(verdict.reasons == (), passes)


class TemplatesTest(absltest.TestCase):
  @hypothesis.given(st.integers(0, 200), st.integers())
  def test_permutation_visits_each_once(self, n, seed):
    visited = list(templates.permutation(n, random.Random(seed)))
    self.assertEqual(sorted(visited), list(range(n)))

  def test_permutation_is_uniform(self):
    rng = random.Random(0)
    counts = collections.Counter(
      tuple(templates.permutation(3, rng)) for _ in range(6000)
    )
    self.assertLen(counts, 6)
    self.assertLess(max(abs(c - 1000) for c in counts.values()), 150)

  def test_slots_take_distinct_words_of_their_kind(self):
    generate = templates.Generator(
      {"train": [templates.Template("<a> <a2> <b>", "<a2> <a>", "<a>", "<b>")]},
      {"a": {"train": ("x", "y")}, "b": {"train": ("u", "v")}},
    )
    got = {
      (p.prompt, p.counter_prompt, p.answer, p.counter_answer)
      for p in generate("train", "key")
    }
    want = {
      (f"{a} {b} {c}", f"{b} {a}", a, c)
      for a, b in itertools.permutations("xy")
      for c in "uv"
    }
    self.assertEqual(got, want)

  def test_templates_take_turns(self):
    generate = templates.Generator(
      {
        "train": [
          templates.Template("1 <a>", "", "", ""),
          templates.Template("2 <a> <a2>", "", "", ""),
        ]
      },
      {"a": {"train": tuple("abcdefgh")}},
    )
    first = [p.prompt[0] for p in itertools.islice(generate("train", "k"), 16)]
    self.assertEqual(first.count("1"), 8)


# rule, answers, code, [(text that ends at the point, evidence, right answer)]
_RULES = (
  (
    natural_rules.quotes,
    ("')", '")'),
    "f('a') + g(\"b\")\nx = '''c'''\ny = r'd'\n",
    [("f('a", "'", "')"), ('g("b', '"', '")'), ("r'd", "r", "')")],
  ),
  (
    natural_rules.depth,
    ("]]", "]"),
    "x = [[1, 2], [3]]\ny = [4]\nz = [[\n  5],\n]\nw = a[b[6]] + f([7])\n",
    [
      ("[[1, 2], [3", "[[", "]]"),
      ("y = [4", "[4", "]"),
      ("5],\n", "[[\n", "]"),
      ("a[b[6", "[b", "]]"),
      ("f([7", "[7", "]"),
    ],
  ),
  (
    natural_rules.displays,
    ("]", "}"),
    "x = [1, {2: 3}]\ny = a[4]\nz = []\n",
    [("{2: 3", "{2", "}"), ("{2: 3}", "[1", "]")],
  ),
  (
    natural_rules.fields,
    ("}", ")"),
    "x = f'a {b} {{c}} {d + 1}'\ng(h, i)\nj(k=l)\n'{m}'\n",
    [("f'a {b", "f'", "}"), ("g(h, i", "(h", ")")],
  ),
  (
    natural_rules.containers,
    (".add", " +="),
    'a = set()\nb = ""\na.add(1)\nb += "c"\na = []\na.pop()\n'
    "def f():\n  b += 1\n",
    [("a", "a = set", ".add"), ("b", 'b = ""', " +=")],
  ),
  (
    natural_rules.swaps,
    (),
    "a, b = b, a\na, b = c, a\n",
    [("a, b = b,", "a, b = b", " a")],
  ),
  (
    natural_rules.conditions,
    (),
    "a = 1\nb = f()\nif b:\n  c = 2\nif a:\n  pass\n",
    [("if", "a = 1", " b")],
  ),
  (
    natural_rules.truths,
    (":", "\n"),
    "while True:\n  return True\nreturn True and x\n",
    [("while True", "while", ":"), ("  return True", "return", "\n")],
  ),
  (
    natural_rules.branches,
    (":", " "),
    "if a:\n  b = c if d else e\nelif f:\n  pass\nelse:\n  pass\n",
    [("pass\nelse", "else", ":"), ("e\nelif", "elif", " ")],
  ),
  (
    natural_rules.calls,
    (" as", "\n"),
    "with f(a) as b:\n  return g(c)\nwith h(d):\n  return i(e) + 1\n",
    [("with f(a)", "with f", " as"), ("return g(c)", "return g", "\n")],
  ),
  (
    natural_rules.calls,
    (")", ")\n"),
    "with f(a) as b:\n  return g(c)\n",
    [("with f(a", "with f", ")"), ("return g(c", "return g", ")\n")],
  ),
  (
    natural_rules.loops,
    (" in", " <"),
    "for a in b:\n  while c < d:\n    pass\nwhile e > 1:\n  pass\n",
    [("for a", "for a", " in"), ("while c", "while c", " <")],
  ),
  (
    natural_rules.ternaries,
    (" else", ":"),
    "a = b if c else d\nif e:\n  f = [g for g in h if g]\n",
    [("b if c", "a = b", " else"), ("if e", "if e", ":")],
  ),
  (
    natural_rules.comparisons,
    (" ==", " ="),
    "if a == 1:\n  b = 2\n  self.c = 3\nif d > 1: pass\n",
    [
      ("if a", "if a", " =="),
      ("  b", "b = 2", " ="),
      ("self.c", "self.c", " ="),
    ],
  ),
  (
    natural_rules.indents,
    ("deep", "level"),
    "def f():\n    for a in b:\n        c\n    d\n    # e\n    if g:\n"
    "        h\n    i\n    j\n\n    k\n",
    [
      ("for a in b:\n", "for a", "deep"),
      ("    i\n", "i\n", "level"),
    ],
  ),
  (
    natural_rules.parameters,
    (":", ")"),
    "lambda a, b: a\ndef f(c, d):\n  pass\ndef g(e=1, *h):\n  pass\n",
    [("lambda a, b", "lambda", ":"), ("def f(c, d", "def f", ")")],
  ),
  (
    natural_rules.iterations,
    (" enumerate", " range"),
    "for i, a in enumerate(b):\n  for j in range(2):\n    pass\n"
    "for c in d: pass\n",
    [("for i, a in", "for i", " enumerate"), ("for j in", "for j", " range")],
  ),
  (
    natural_rules.methods,
    ("(self", "()"),
    "class A:\n  def f(self):\n    def g():\n      pass\n\n  @staticmethod\n"
    "  def h():\n    pass\ndef k():\n  pass\n",
    [
      ("def f", "class A", "(self"),
      ("def g", "def g", "()"),
      ("def k", "def k", "()"),
    ],
  ),
)


class RulesTest(parameterized.TestCase):
  @parameterized.parameters(*_RULES)
  def test_rule(self, rule, answers, text, want):
    code = natural.parse(text)
    got = list(rule(code, answers))
    self.assertLen(got, len(want), got)
    for point in got:
      fits = [
        (before, evidence, correct)
        for before, evidence, correct in want
        if text[: point.offset].endswith(before)
        and text.startswith(evidence, point.start)
        and correct == point.correct
      ]
      self.assertNotEmpty(fits, point)
      self.assertNotEqual(point.correct, point.incorrect)
      if answers:
        self.assertEqual({point.correct, point.incorrect}, set(answers))

  def test_offsets_behind_wide_characters(self):
    text = "a = 'é'  # 世界 🙂\nb = f('c')\n"
    points = list(natural_rules.quotes(natural.parse(text), ("')", '")')))
    self.assertEqual([text[p.start : p.offset] for p in points], ["'é", "'c"])

  @parameterized.parameters("def f(:\n  'a", "x = (\n", "  a\n b\n", "'a\n")
  def test_what_is_not_python_is_skipped(self, text):
    code = natural.parse(text)
    for rule, answers, _, _ in _RULES:
      if code is not None:
        list(rule(code, answers))


class NaturalTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    texts = _texts()
    cls.documents = _documents(["# é🙂\n" + text for text in texts[::3]])
    cls.tokenizer = tokenizer_lib.Tokenizer.train(texts[1::2], 1500)
    cls.tasks = []
    for name in tasks.TASK_NAMES:
      try:
        cls.tasks.append(tasks.make_task(name, cls.tokenizer))
      except tasks.TaskNotExpressible:
        pass

  def test_prompts_are_what_the_files_say(self):
    harvested = natural.harvest(self.tasks, self.documents, 60, 0, 64)
    files = {
      d.name: bytes(np.array(self.tokenizer.encode(d.text), ">u4"))
      for d in self.documents
    }
    total = 0
    for task in self.tasks:
      prompts = harvested[task.name]
      if task.find_points is None:
        self.assertIsNone(prompts)
        continue
      total += len(prompts)
      self.assertLessEqual(len(prompts), 60)
      self.assertEqual(prompts.tokens.shape, (len(prompts), 64))
      for row, n, correct, name in zip(
        prompts.tokens,
        prompts.lengths,
        prompts.correct,
        prompts.names,
        strict=True,
      ):
        self.assertIn(bytes(np.array([*row[:n], correct], ">u4")), files[name])
        self.assertFalse(row[n:].any())
      self.assertTrue((prompts.correct != prompts.incorrect).all())
      if len(task.answers) == 2:
        counts = collections.Counter(prompts.correct.tolist())
        self.assertLen(set(counts.values()), min(1, len(prompts)))
        self.assertIn(len(counts), (0, 2))
    self.assertGreater(total, 200)

  def test_one_task_alone_gives_the_same(self):
    task = self.tasks[0]
    alone = task.natural(self.documents, 20, seed=5, context_length=32)
    together = natural.harvest(self.tasks, self.documents, 20, 5, 32)[task.name]
    for a, b in zip(alone.sequences(), together.sequences(), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_evidence_beyond_the_context_is_left_out(self):
    task = next(t for t in self.tasks if t.name == "single_double_quote")
    long = " ".join(["word"] * 60)
    for text, count in (("a", 2), (long, 0)):
      document = f"x = f('{text}').y\nx = f(\"{text}\").y\n"
      found = task.natural(_documents([document]), 100, 0, 16)
      self.assertIn(len(found), (count, 0) if count else (0,))
      if count and self.tokenizer.single_token("').") is None:
        self.assertLen(found, count)

  def test_no_documents_give_no_prompts(self):
    found = self.tasks[0].natural([], 10)
    self.assertLen(found, 0)
    self.assertEqual(found.sequences()[0].shape, (0, 128))


def _rows():
  for i in range(40):
    yield {
      "prompt": f"print('word {i}",
      "answer": "'",
      "counter_prompt": f'print("word {i}',
      "counter_answer": '"',
    }


class UserTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.Tokenizer.train([], 257)

  def _write(self, name, text):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), name)
    path.write_text(text, encoding="utf-8")
    return str(path)

  def test_jsonl(self):
    rows = list(_rows())
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    task = tasks.make_task(self._write("mine.jsonl", text), self.tokenizer)
    self.assertEqual((task.name, task.answers), ("mine", ("'", '"')))
    self.assertIsNone(task.natural(_documents(["x = 1\n"]), 5))
    self.assertNotEmpty(task.natural_reason)
    prompts = []
    for split in tasks.SPLITS:
      with self.assertRaisesRegex(errors.InputError, "at most") as raised:
        task.pairs(split, 100)
      available = int(str(raised.exception).split("at most ")[1].split(",")[0])
      pairs = task.pairs(split, available)
      _check_pairs(self, self.tokenizer, pairs, available)
      prompts += pairs.prompt_texts
    self.assertCountEqual(prompts, [row["prompt"] for row in rows])

  def test_jsonl_with_splits(self):
    rows = [
      row | {"split": tasks.SPLITS[i % 3]} for i, row in enumerate(_rows())
    ]
    path = self._write("s.jsonl", "\n".join(map(json.dumps, rows)))
    pairs = tasks.make_task(path, self.tokenizer).pairs("validation", 13)
    self.assertCountEqual(
      pairs.prompt_texts, [row["prompt"] for row in rows[1::3]]
    )

  @parameterized.parameters(
    ("{", r"bad.jsonl:2 is not JSON"),
    ("[" * 100_000, r"bad.jsonl:2 is not JSON"),
    ("[]", r"bad.jsonl:2=\[\].*an object"),
    (
      json.dumps([[list(range(99))] * 9] * 9),
      "^.{0,50}bad.jsonl:2=.{150,190}$",
    ),
    ({"prompt": ["x"] * 999}, "^.{0,50}bad.jsonl:2: prompt=.{100,200}$"),
    ({"answer": "\ud800"}, r"bad.jsonl:2: answer='\\ud800' holds a lone"),
    ({"answer": 3}, "bad.jsonl:2: answer=3.*a string"),
    ({"prompt": ""}, "bad.jsonl:2: prompt=''"),
    ({"answr": "x"}, "unknown field in .*answr.*did you mean 'answer'"),
    ({"split": "tset"}, "unknown split in .*did you mean 'test'"),
    ({"counter_answer": "'"}, "counter_answer.*another text"),
  )
  def test_bad_jsonl(self, change, message):
    good, bad = itertools.islice(_rows(), 2)
    line = change if isinstance(change, str) else json.dumps(bad | change)
    path = self._write("bad.jsonl", f"{json.dumps(good)}\n{line}\n")
    with self.assertRaisesRegex(errors.InputError, message):
      tasks.make_task(path, self.tokenizer)

  def test_jsonl_with_a_byte_order_mark(self):
    text = "\ufeff" + "\n".join(map(json.dumps, _rows()))
    task = tasks.make_task(self._write("mine.jsonl", text), self.tokenizer)
    self.assertLen(task.pairs("train", 5), 5)

  def test_jsonl_that_loses_pairs_says_so(self):
    rows = [
      row | {"split": tasks.SPLITS[i % 3]} for i, row in enumerate(_rows())
    ]
    for i in (0, 3, 4):
      rows[i]["answer"] = f"')'{i}"
    path = self._write("mine.jsonl", "\n".join(map(json.dumps, rows)))
    with self.assertLogs("absl", "WARNING") as logs:
      tasks.make_task(path, self.tokenizer)
    messages = [r.getMessage() for r in logs.records]
    self.assertEqual(
      messages,
      [
        "task 'mine': 3 of 40 pairs dropped: answers \"')'0\", \"')'3\","
        " \"')'4\" are not single tokens",
        "task 'mine': 12 train, 12 validation, 13 test pairs; below 20 a split"
        " measures little",
      ],
    )

  def test_jsonl_that_loses_nothing_says_nothing(self):
    rows = [
      {k: v.replace("word", f"word{s}") for k, v in row.items()} | {"split": s}
      for row in _rows()
      for s in tasks.SPLITS
    ]
    path = self._write("mine.jsonl", "\n".join(map(json.dumps, rows)))
    with self.assertNoLogs("absl", "WARNING"):
      tasks.make_task(path, self.tokenizer)
    rows[1:1] = rows[:1]
    path = self._write("mine.jsonl", "\n".join(map(json.dumps, rows)))
    with self.assertLogs("absl", "WARNING") as logs:
      tasks.make_task(path, self.tokenizer)
    self.assertLen(logs.records, 1)
    self.assertRegex(
      logs.output[0], "1 of 121 pairs dropped: their prompts occur before"
    )

  def test_jsonl_without_a_split_or_with_a_shared_prompt(self):
    good = next(_rows())
    lines = [json.dumps(good | {"split": s}) for s in ("train", "test")]
    for text, message in (
      (lines[0], "no pairs for validation, test"),
      ("\n".join(lines), "is in train as well as test"),
    ):
      with self.assertRaisesRegex(errors.InputError, message):
        tasks.make_task(self._write("bad.jsonl", text), self.tokenizer)

  def test_jsonl_that_the_tokenizer_cannot_state(self):
    text = "\n".join(json.dumps(row | {"answer": "')"}) for row in _rows())
    with self.assertRaisesRegex(tasks.TaskNotExpressible, r"\"'\)\""):
      tasks.make_task(self._write("mine.jsonl", text), self.tokenizer)

  def test_jsonl_whose_answers_merge_with_the_prompt(self):
    tokenizer = tokenizer_lib.Tokenizer.train(["self"] * 9, 260)
    self.assertIsNotNone(tokenizer.single_token("self"))
    rows = (
      {"prompt": f"{i}sel", "answer": "f", "split": split}
      | {"counter_prompt": f"{i}fle", "counter_answer": "s"}
      for i, split in enumerate(tasks.SPLITS)
    )
    path = self._write("mine.jsonl", "\n".join(map(json.dumps, rows)))
    with self.assertRaisesRegex(tasks.TaskNotExpressible, "'0self'"):
      tasks.make_task(path, tokenizer)

  def test_python(self):
    path = self._write(
      "quotes.py",
      "RULE = 'Quotes match.'\n"
      "def generate(split, rng):\n"
      "  while True:\n"
      "    n = rng.randrange(1000)\n"
      "    yield f\"{split}('{n}\", \"'\", f'{split}(\"{n}', '\"'\n",
    )
    task = tasks.make_task(path, self.tokenizer)
    self.assertEqual(task.rule, "Quotes match.")
    _check_pairs(self, self.tokenizer, task.pairs("train", 50, 1), 50)
    self.assertEqual(
      task.pairs("train", 50, 1).prompt_texts,
      task.pairs("train", 50, 1).prompt_texts,
    )

  @parameterized.parameters(
    ("x = 1\n", "generate=None"),
    ("1 / 0\n", "fails: ZeroDivisionError"),
    ("def generate(split):\n  yield 1\n", "fails: TypeError"),
    ("def generate(split, rng):\n  yield 'a', 'b'\n", "tuples of prompt"),
    ("def generate(split, rng):\n  yield 5\n", "tuples of prompt"),
    ("def generate(split, rng):\n  yield 'a', 1, 'b', 'c'\n", "answer=1"),
    ("def generate(split, rng):\n  yield 'a', 'b', 'c', 'd'\n", "share no"),
    ("def generate(split, rng):\n  return []\n", "no pairs at all"),
  )
  def test_bad_python(self, text, message):
    with self.assertRaisesRegex(errors.InputError, message):
      tasks.make_task(self._write("bad.py", text), self.tokenizer)

  def test_the_examples_of_the_docs(self):
    page = pathlib.Path(__file__).parents[2] / "docs" / "tasks.md"
    blocks = dict(
      re.findall(r"```(json|python)\n(.*?)\n```", page.read_text(), re.S)
    )
    lines = "\n".join(
      blocks["json"].replace("x = ", f"x{i} = ") for i in range(40)
    )
    for name, text in (("own.jsonl", lines), ("own.py", blocks["python"])):
      task = tasks.make_task(self._write(name, text), self.tokenizer)
      self.assertEqual(task.answers, ("'", '"'))
      _check_pairs(self, self.tokenizer, task.pairs("test", 5), 5)

  def test_difficulty_is_refused(self):
    text = "\n".join(map(json.dumps, _rows()))
    with self.assertRaisesRegex(errors.InputError, "difficulty=1"):
      user.load(self._write("mine.jsonl", text), self.tokenizer, 1)


if __name__ == "__main__":
  absltest.main()
