"""A pinned corpus: Python files of named packages, the same bytes everywhere.

Packages are wheels named by version and hash, so what they hold is fixed; which
of their files are kept depends on paths and text alone, not on the interpreter.
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sparse_jax.data import cleaning
from sparse_jax.utils import errors, files

# Single files may be under other terms than their package.
_OTHER_LICENCE = re.compile(
  r"non-?commercial|\bCC[- ]BY|creative commons|\bEUPL|\b[AL]?GPL"
  r"|general public license|mozilla public license|\bMPL[- v]?[12]",
  re.I,
)
_LICENCE_CHARACTERS = 4000  # From a file's start, where terms are stated.
_MAX_BYTES = 1 << 20


class Package(NamedTuple):
  """A requirement `NAME==VERSION --hash=sha256:…  # LICENCE`."""

  name: str
  version: str
  sha256: str
  licence: str


class Listing(NamedTuple):
  """A requirements file and the hash of the corpus that it makes."""

  packages: tuple[Package, ...]
  sha256: str


_LINE = re.compile(
  r"([\w.-]+)==([\w.!+-]+) --hash=sha256:([0-9a-f]{64})\s+# (\S.*)"
)
_WHOLE = re.compile(r"# corpus sha256:([0-9a-f]{64})")


def read_listing(path: files.PathLike) -> Listing:
  """Returns the packages of a requirements file.

  A comment `# corpus sha256:…` gives the hash of the whole, "" without one.
  Raises InputError for any other line that is neither comment nor empty.
  """
  packages, whole = [], ""
  text = files.read_text(path, "a list of packages")
  for number, line in enumerate(text.splitlines(), 1):
    if found := _WHOLE.fullmatch(line):
      whole = found[1]
    elif line.strip() and not line.startswith("#"):
      found = _LINE.fullmatch(line)
      if not found:
        raise errors.InputError(
          f"{path}:{number} is {line!r}; need NAME==VERSION --hash=sha256:HASH"
          "  # LICENCE"
        )
      packages.append(Package(*found.groups()))
  if not packages:
    raise errors.InputError(f"{path} names no packages; need one or more")
  return Listing(tuple(packages), whole)


def download(
  package: Package, directory: pathlib.Path, options: Iterable[str] = ()
) -> pathlib.Path:
  """Returns a package's wheel in `directory`, fetched where it is not there.

  `options` are pip's, such as an index. Raises InputError if pip cannot get
  that file, or what it gets has another hash.
  """
  for path in sorted(directory.glob("*.whl")):
    name, version = path.name.split("-")[:2]
    if (_normal(name), version) != (_normal(package.name), package.version):
      continue
    if _has_hash(path, package):
      return path
    path.unlink()  # A fetch that was cut short, or a file that was changed.
  requirement = directory / "wanted.txt"
  line = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
  files.write_bytes(requirement, line.encode())
  # Pure wheels alone, and the same ones for every interpreter and system.
  command = [
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
    *("--require-hashes", "--only-binary=:all:", "--platform=any"),
    *("--implementation=py", "--abi=none", "--python-version=3.13"),
    *("--dest", str(directory), "--requirement", str(requirement), *options),
  ]
  before = set(directory.glob("*.whl"))
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  requirement.unlink()
  fetched = set(directory.glob("*.whl")) - before
  if result.returncode or not fetched:
    lines = result.stderr.strip().splitlines()
    reason = next((x for x in lines if x.startswith("ERROR")), "no wheel")
    raise errors.InputError(
      f"cannot fetch {package.name}=={package.version}: {reason}; need a"
      " package index that has the file of that hash"
    )
  return fetched.pop()


def _normal(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def _has_hash(path: pathlib.Path, package: Package) -> bool:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def python_files(wheel: pathlib.Path) -> Iterator[tuple[str, str | None]]:
  """Yields (path, text) of a wheel's .py files; None where it is no text.

  Members are read in memory: nothing is unpacked to a path that a wheel names.
  Raises InputError for a file that is no wheel.
  """
  try:
    with zipfile.ZipFile(wheel) as archive:
      for member in sorted(archive.infolist(), key=lambda m: m.filename):
        path = member.filename
        parts = pathlib.PurePosixPath(path).parts
        is_inside = not path.startswith("/") and ".." not in parts
        if not path.endswith(".py") or member.is_dir() or not is_inside:
          continue
        if member.file_size > _MAX_BYTES:
          yield path, None
          continue
        try:
          text = archive.read(member).decode("utf-8-sig")
        except UnicodeDecodeError:
          yield path, None
          continue
        yield path, text.replace("\r\n", "\n").replace("\r", "\n")
  except Exception as e:  # Zip and zlib raise many kinds.
    raise errors.InputError(f"{wheel} cannot be read: {e}; need a wheel") from e


def why_dropped(path: str, text: str | None) -> str | None:
  """Returns why a file is not part of the corpus, None if it is."""
  if text is None:
    return "too large or not UTF-8"
  if not text.strip():
    return "empty"
  if why := cleaning.why_not_code(path, text):
    return why
  is_other = _OTHER_LICENCE.search(text[:_LICENCE_CHARACTERS])
  return "another licence" if is_other else None


def whole_hash(documents: Iterable[tuple[str, str]]) -> str:
  """Returns the SHA-256 over (path, SHA-256 of the text) in hex, sorted."""
  digest = hashlib.sha256()
  for path, text_hash in sorted(documents):
    digest.update(f"{path}\0{text_hash}\n".encode())
  return digest.hexdigest()
