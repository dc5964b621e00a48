"""Tasks about strings: which quote or brace closes what was opened."""

from sparse_jax.tasks import natural_rules
from sparse_jax.tasks.spec import Spec, contrast, substitute

# `~` stands for the quote, `<...>` for a slot.
_QUOTE_PROMPTS = {
  "train": (
    "print(~<adjective> <noun>",
    "    print(~<noun> <noun2>",
    "raise ValueError(~<adjective> <noun> <noun2>",
    "        raise TypeError(~<noun> <adjective> <noun2>",
    "<name> = <name2>.get(~<noun>",
    "    <name> = os.path.join(<name2>, ~<noun>",
    "    return <name>.split(~<noun>",
    "self.assertEqual(<name>, ~<noun>",
    "        self.assertIn(~<adjective> <noun>",
    "parser.add_argument(~<noun>",
  ),
  "validation": (
    "logger.info(~<adjective> <noun>",
    "    logging.warning(~<noun> <adjective> <noun2>",
    "        raise KeyError(~<adjective> <noun>",
    "<name> = getattr(<name2>, ~<noun>",
    "    if <name>.startswith(~<noun>",
    "    <name>.append(~<noun> <noun2>",
    "<name> = <name2>.find(~<noun>",
  ),
  "test": (
    "log.debug(~<adjective> <noun>",
    "    warnings.warn(~<noun> <adjective> <noun2>",
    "        raise RuntimeError(~<adjective> <noun>",
    "<name> = open(<name2>, ~<noun>",
    "    if hasattr(<name>, ~<noun>",
    "    <name>.write(~<noun> <noun2>",
    "<name> = <name2>.pop(~<noun>",
    "sys.stdout.write(~<adjective> <noun>",
  ),
}

# Lines that hold both kinds of quote, or one of either.
_QUOTE_DISTRACTORS = {
  "train": (
    "<name> = {'<noun>': \"<noun2>\"}",
    "<name> = {\"<noun>\": '<noun2>'}",
  ),
  "validation": (
    "<name> = ['<noun>', \"<noun2>\"]",
    "<name> = [\"<noun>\", '<noun2>']",
  ),
  "test": ("<name> = '<noun>', \"<noun2>\"", "<name> = \"<noun>\", '<noun2>'"),
}


SINGLE_DOUBLE_QUOTE = Spec(
  name="single_double_quote",
  rule="A string in a call closes with the quote that opened it.",
  variants=substitute(_QUOTE_PROMPTS, ("'", '"'), ("')", '")'), ("'", '"')),
  distractors=_QUOTE_DISTRACTORS,
  find_points=natural_rules.quotes,
)

_FSTRING_PROMPTS = {
  "train": (
    ('print(f"<noun> {<name>', 'print(f("<noun>", <name>'),
    ('    print(f"<noun>: {<name>', '    print(f("<noun>:", <name>'),
    ('<name> = f"<noun> {<name2>', '<name> = f("<noun>", <name2>'),
    ('    return f"<noun> {<name>', '    return f("<noun>", <name>'),
  ),
  "validation": (
    ('logger.info(f"<noun> {<name>', 'logger.info(f("<noun>", <name>'),
    ('    yield f"<noun> {<name>', '    yield f("<noun>", <name>'),
    ('<name> += f"<noun>: {<name2>', '<name> += f("<noun>:", <name2>'),
  ),
  "test": (
    ('log.debug(f"<noun> {<name>', 'log.debug(f("<noun>", <name>'),
    ('<name>[0] = f"<noun> {<name2>', '<name>[0] = f("<noun>", <name2>'),
    (
      '    self.<name> = f"<noun> {<name2>',
      '    self.<name> = f("<noun>", <name2>',
    ),
  ),
}

FSTRING_BRACE = Spec(
  name="fstring_brace",
  rule="A name in an f-string closes with a brace, an argument with a"
  " parenthesis.",
  variants=contrast(_FSTRING_PROMPTS, ("}", ")")),
  find_points=natural_rules.fields,
)
