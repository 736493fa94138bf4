# Each target does its own set-up; nothing has to be done by hand first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test setup lint types check slow compose-setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   tune a model on a reference clip, play it, score it: out/demo/report.html"
	@echo "make test   run the tests"
	@echo "make setup  only make .venv with .venv/bin/musictune"
	@echo "make check  what CI runs: lint, types, tests"

demo: setup
	$(BIN)/musictune demo --out out/demo --overwrite

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "musictune needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "no venv module; on Debian or Ubuntu: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

slow: setup
	$(BIN)/python -m pytest -m slow

compose-setup: setup
	$(BIN)/python -m pip install --quiet --no-deps tinysoundfont

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
