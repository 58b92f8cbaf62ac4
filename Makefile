# Each target sets the virtual environment up when it is missing or the pins have changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       the whole job, offline, on a small web made on the spot (minutes)"
	@echo "make test       the tests (minutes)"
	@echo "make test-slow  kill tests, real data, big lists (PAIRMILL_DATA=folder for the real ones)"
	@echo "make check      format, lint, types"
	@echo "make bench      the benchmarks (PAIRMILL_DATA=folder for the real ones)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing pairmill and its dependencies (some minutes, torch is large) ..."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/pairmill demo --out demo-out

test: $(READY)
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadgroup

test-slow: $(READY)
	$(BIN)/pytest -m slow --timeout 7200

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/types_of_package.py

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,bench]"
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) demo-out build *.egg-info
