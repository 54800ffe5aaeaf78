# make demo | demo-text | test | test-all | lint | bench: each sets up .venv first and needs nothing but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: $(VENV) demo demo-text test test-all lint bench clean
.DELETE_ON_ERROR:

$(VENV): $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is %d.%d: make PYTHON=..." \
	  % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments:" \
	  "install its venv module (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/stepdistill run demo

demo-text: $(READY)
	$(BIN)/stepdistill run demo-text

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: $(READY)
	$(BIN)/python tests/shards.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/pylint --disable=all --enable=duplicate-code --min-similarity-lines=6 stepdistill

bench: $(READY)
	$(BIN)/python -m pytest -q -m bench

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
	find stepdistill tests pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
