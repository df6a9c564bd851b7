# Every target sets itself up: on a fresh machine the first call makes .venv and installs what the target needs.

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter on the PATH that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help test test-gpu demo check lint style types imports format soak bench clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# torch comes first and by name: its version decides the build, and all else is resolved against it.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing what '$*' needs into $(VENV): minutes the first time, most of them for torch."
	$(PIP) install --quiet "torch==2.13.0"
	$(PIP) install --quiet --editable ".[$*]"
	@touch $@

test: $(VENV)/.installed-dev ## Run the tests (all but the soak).
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-gpu: $(VENV)/.installed-dev ## Run the tests that need a GPU, and print what they measure; an error where there is none.
	$(BIN)/python -m tests.gpu $(ARGS)

demo: $(VENV)/.installed-demo,tune,postgresql,rich ## Train and tune, kill, resume, compare; RANKS=2 does it on two ranks.
	$(BIN)/python examples/demo.py --ranks $(or $(RANKS),1)

check: lint test ## Run every gate, as CI does.

lint: style types imports ## Check style, types and imports.

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev ## Format, and mend what can be mended by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(VENV)/.installed-dev ## Kill and resume hundreds of runs; takes many minutes.
	$(BIN)/python -m pytest -m soak -n 2 --timeout 3600 $(ARGS)

bench: $(VENV)/.installed-dev ## Measure against the bare torch loop and print a table.
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove .venv, caches and what was built.
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
