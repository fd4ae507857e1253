# Everything a fresh clone needs: Python >= 3.11 with venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make bench` writes and `make bench-compare` compares with BASE.
RESULT ?= build/bench.json
BASE ?= benchmarks/base.json

# The suite starts hundreds of processes: without cached bytecode each compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := compare
.PHONY: help compare install test test-all quick lint report bench bench-compare fuzz mutants docs clean

help: ## what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml paravirt_mm/_version.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# To compare takes seven packages; tests, drawings and sweeps take many times as much.
$(VENV)/.core: pyproject.toml paravirt_mm/_version.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

compare: $(VENV)/.core ## compare allocators on the machines of the package
	$(BIN)/paravirt-mm compare

install: $(VENV)/.installed ## everything that reports, sweeps, judges and tests need

test: $(VENV)/.installed ## the whole suite
	$(BIN)/pytest -n auto --dist worksteal -m "not full"

test-all: $(VENV)/.installed ## the suite, and larger cases of what it has in small
	$(BIN)/pytest -n auto --dist worksteal

quick: $(VENV)/.installed ## the part of the suite that takes less than a minute
	$(BIN)/pytest -n auto --dist worksteal -m "not slow"

lint: $(VENV)/.installed ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

report: $(VENV)/.installed ## write the published comparison again
	$(BIN)/python reports/compare.py

bench: $(VENV)/.installed ## measure, beside the same work in C; result: $(RESULT)
	mkdir -p $(dir $(RESULT))
	$(BIN)/pytest benchmarks -p no:xdist --benchmark-json=$(RESULT) --benchmark-columns=min,median

bench-compare: ## is RESULT better or worse than BASE?
	@$(BIN)/python benchmarks/compare.py $(BASE) $(RESULT)

fuzz: $(VENV)/.installed ## damage inputs for SECONDS=60 and throw them at everything that reads
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

mutants: $(VENV)/.installed ## change PATHS here and there: which changes does no test notice?
	$(BIN)/python tools/mutate.py $(PATHS) --count $(or $(COUNT),20) $(if $(TESTS),--tests $(TESTS))

docs: $(VENV)/.installed ## the documentation site, into build/docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist
