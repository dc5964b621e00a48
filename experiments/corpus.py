"""Fetches the pinned corpus: the same Python files on every machine.

  python -m experiments.corpus --out=corpus

Writes files/ (what to train on), tokens/ (the same as tokens) and manifest.json
(packages, licences, sizes, hashes). What is there already is kept. To train:

  python -m experiments.train --config=experiments/configs/quickstart.py \\
    --workdir=runs/pinned --config.data.source=corpus/files \\
    --config.data.directory=corpus/tokens --config.data.max_megabytes=0 \\
    --config.data.vocab_size=2048

Exit status 1 if the files are not those whose hash the list names.
"""

import collections
import hashlib
import pathlib

from absl import flags

from experiments import cli
from sparse_jax import config as config_lib
from sparse_jax.data import corpus, tokens
from sparse_jax.utils import files, progress

_OUT = flags.DEFINE_string("out", None, "A directory for the corpus.")
_LIST = flags.DEFINE_string(
  "list",
  str(pathlib.Path(__file__).parent / "corpus.txt"),
  "A requirements file of wheels with hashes.",
)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2048, "Of the tokenizer.")
_PIP = flags.DEFINE_multi_string(
  "pip", [], "An option for pip, such as --pip=--find-links=DIR."
)
cli.require("out")


def collect(listing: corpus.Listing, out: pathlib.Path) -> dict:
  """Writes the files that are kept; returns their part of the manifest."""
  wheels = out / "wheels"
  wheels.mkdir(parents=True, exist_ok=True)
  seen, documents, rows = set(), [], []
  dropped: collections.Counter[str] = collections.Counter()
  with files.replace_directory(out / "files", ".corpus") as root:
    (root / ".corpus").touch()  # Hidden: no document.
    description = f"{len(listing.packages)} packages"
    with progress.progress_bar(len(listing.packages), 0, description) as bar:
      for package in sorted(listing.packages):
        wheel = corpus.download(package, wheels, _PIP.value)
        count = size = 0
        for path, text in corpus.python_files(wheel):
          reason = corpus.why_dropped(path, text)
          raw = (text or "").encode()
          digest = hashlib.sha256(raw).hexdigest()
          if reason is None and digest in seen:
            reason = "a duplicate"
          if reason is not None:
            dropped[reason] += 1
            continue
          seen.add(digest)
          documents.append((path, digest))
          target = root / package.name / path
          target.parent.mkdir(parents=True, exist_ok=True)
          target.write_bytes(raw)
          count, size = count + 1, size + len(raw)
        rows.append({**package._asdict(), "files": count, "bytes": size})
        bar.update()
  return {
    "packages": rows,
    "files": len(documents),
    "bytes": sum(row["bytes"] for row in rows),
    "dropped": dict(dropped.most_common()),
    "sha256": corpus.whole_hash(documents),
  }


def main(overrides: list[str]) -> int:
  """Makes the corpus as the flags say."""
  del overrides
  out = pathlib.Path(_OUT.value)
  listing = corpus.read_listing(_LIST.value)
  manifest = collect(listing, out)
  data = tokens.prepare(
    config_lib.DataConfig(
      source=str(out / "files"), clean=False, vocab_size=_VOCAB_SIZE.value
    ),
    out / "tokens",
    batch_size=1,
  )
  manifest["tokens"] = data.manifest["tokens"]
  manifest["tokens_sha256"] = data.manifest["sha256"]
  manifest["vocab_size"] = data.tokenizer.vocab_size
  files.write_json(out / "manifest.json", manifest)
  total = sum(manifest["tokens"].values())
  print(
    f"{manifest['files']:,} files, {manifest['bytes'] / 1e6:.1f} MB,"
    f" {total:,} tokens of {len(listing.packages)} packages in {out}"
  )
  if listing.sha256 in ("", manifest["sha256"]):
    print(f"sha256 {manifest['sha256']}")
    return 0
  print(
    f"sha256 {manifest['sha256']}; {_LIST.value} names another,"
    f" {listing.sha256}"
  )
  return 1


if __name__ == "__main__":
  cli.run(main, __doc__)
