PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format examples clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# uv installs the same wheels as pip, an order of magnitude faster; it comes from PyPI like the rest.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## Train, log, reload without the source, serve and score a subclassed model
	$(BIN)/python examples/demo.py

test: $(READY)  ## All tests
	$(BIN)/python -m pytest

test-fast: $(READY)  ## The tests that need no Keras, in seconds
	$(BIN)/python -m pytest tests/fast

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what make and the demo made
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache dist
