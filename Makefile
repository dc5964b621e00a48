PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test bench verify lint browser

install: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python -m experiments.quickstart $(ARGS)

test: $(STAMP) browser
	$(BIN)/python -m pytest -q -n 2 --dist loadscope --durations=10 tests

bench: $(STAMP)
	$(BIN)/python -m experiments.benchmark $(ARGS)

# What needs the pinned corpus is left out: real prompts, and controls.
verify: $(STAMP)
	$(BIN)/python -m experiments.verify --circuit=reference --natural=false \
	  --controls=false $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The report is tested in a real browser; without one those tests say so.
browser:
	@command -v chromedriver >/dev/null || command -v apt-get >/dev/null && \
	  { command -v chromedriver >/dev/null || { apt-get update -q && \
	    apt-get install -y -q chromium chromium-driver; } >/dev/null 2>&1; } || \
	  echo "no chromium: browser tests will be skipped"

$(STAMP): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(None if v >= (3, 11) else f"need Python 3.11 or newer, found {v[0]}.{v[1]}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $(STAMP)
