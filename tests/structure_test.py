"""The folders are the method: imports run down the list, and in no circle."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "sparse_jax"

# From what one runs to what everything rests on; DESIGN of the tree.
ORDER = (
  "experiments",
  "frontier",
  "watch",
  "report",
  "faithfulness",
  "pruning",
  "bridge",
  "training",
  "programs",
  "explain",
  "checkpoint",
  "huggingface",
  "released",
  "reference",
  "circuit",
  "tasks",
  "data",
  "model",
  "config",
  "sites",
  "utils",
)


def imported_modules(path: pathlib.Path) -> list[str]:
  """Returns the project's modules that a file imports, anywhere in it."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return [n for n in found if n.split(".")[0] in ("sparse_jax", "experiments")]


def layer(module: str) -> str | None:
  """Returns which entry of `ORDER` a dotted module belongs to."""
  head, *rest = module.split(".")
  if head == "experiments":
    return "experiments"
  return rest[0] if rest and rest[0] in ORDER else None


def source_files() -> list[pathlib.Path]:
  """Returns every module of the package and of the commands."""
  return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])


def dotted(path: pathlib.Path) -> str:
  """Returns a file's module name."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", source_files(), ids=dotted)
def test_imports_run_down_the_order(path):
  mine = layer(dotted(path))
  if mine is None:  # The package's own public names.
    return
  above = ORDER[: ORDER.index(mine)]
  wrong = [m for m in imported_modules(path) if layer(m) in above]
  assert not wrong, f"{dotted(path)} imports from above: {wrong}"


def test_no_module_imports_itself_in_a_circle():
  files = {dotted(path): path for path in source_files()}
  graph = {
    name: {
      # A name that is no module is one of its package's public names.
      imported if imported in files else imported.rpartition(".")[0]
      for imported in imported_modules(path)
    }
    for name, path in files.items()
  }
  done: set[str] = set()

  def visit(name, trail):
    assert name not in trail, " -> ".join([*trail, name])
    if name not in done:
      for other in sorted(graph[name]):
        visit(other, [*trail, name])
      done.add(name)

  for name in files:
    visit(name, [])


@pytest.mark.parametrize(
  "path", sorted(PACKAGE.rglob("__init__.py")), ids=dotted
)
def test_package_files_hold_public_names_alone(path):
  for node in ast.parse(path.read_text()).body:
    is_text = isinstance(node, ast.Expr) and isinstance(
      node.value, ast.Constant
    )
    is_all = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    assert is_text or is_all or isinstance(node, ast.ImportFrom), ast.unparse(
      node
    )


def test_every_package_is_in_the_order():
  modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
  names = modules | {p.parent.name for p in PACKAGE.glob("*/*.py")}
  assert names == set(ORDER) - {"experiments"}


def test_tests_mirror_the_packages():
  packages = {p.parent.name for p in PACKAGE.rglob("__init__.py")}
  packages -= {"sparse_jax"}
  folders = {
    p.name for p in (ROOT / "tests").iterdir() if any(p.glob("*_test.py"))
  }
  assert packages | {"experiments"} == folders
