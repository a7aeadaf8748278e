# What a newcomer and CI run. Everything lives in .venv; nothing outside it is touched.
# Variables: PYTHON (default python3.11), DEVICE=cpu|cuda|auto, TORCH_INDEX=URL, JOBS (test files
# at a time; each may start two processes of its own).

PYTHON ?= python3.11
DEVICE ?= auto
TORCH_INDEX ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime-$(DEVICE)
DEV := $(VENV)/.installed-dev
SPARK := $(VENV)/.installed-spark
INSTALL := $(BIN)/python requirements/install.py

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-slow drill hosts spark text lint format types docs submissions wheel install clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

install: $(DEV) ## make .venv and install everything, pinned

demo: $(RUNTIME) ## see it work: synthetic data, training, evaluation, a table
	$(BIN)/hisac-rec demo --force

test: lint types ## style, types, tests with coverage: what CI runs
	$(BIN)/pytest -n $(JOBS) --dist loadfile --cov=hisac_rec

test-slow: $(DEV) ## the tests that take minutes
	$(BIN)/pytest -m slow

drill: $(DEV) ## kill, stop and starve trainings, twenty random kills: docs/results/faults.md
	$(BIN)/pytest tests/faults -m 'drill or not drill'
	$(BIN)/python -m benchmarks.faults.kills --page docs/results/faults.md

hosts: $(DEV) ## train on several hosts, in network namespaces of this machine; needs root
	$(BIN)/pytest -m hosts -rs

text: $(DEV) ## embed texts by a real model: installs 260 MB more
	$(INSTALL) text
	$(BIN)/pytest -m text -rs

spark: $(SPARK) ## install Spark, 450 MB, and prepare data on a local one; needs Java 17
	$(BIN)/pytest -m spark -rs

bench: $(RUNTIME) ## measure the speed of everything, some minutes: docs/results/speed.md
	$(BIN)/python -m benchmarks.bench

lint: $(DEV) ## check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(DEV) ## apply style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(DEV) ## check types
	$(BIN)/mypy

docs: $(RUNTIME) ## write the generated pages of docs/ anew
	$(BIN)/python -m hisac_rec.docs_config docs/configuration.md
	$(BIN)/python -m hisac_rec.docs_datasets docs/datasets.md

submissions: $(RUNTIME) ## write launch/submissions anew, from launch/components.py
	$(BIN)/python -m hisac_rec.submissions launch/submissions

wheel: $(DEV) ## build dist/hisac_rec-*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean: ## remove what was built, .venv too; data/ and runs/ stay
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not here: install Python 3.11, or name it: make demo PYTHON=/path/to/python3.11"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A stamp is newer than the lists it was made from, so nothing is installed twice; it names the
# device, so that another DEVICE installs again.
$(RUNTIME): requirements/runtime.txt requirements/cpu.txt requirements/cuda.txt \
            requirements/install.py pyproject.toml | $(BIN)/python
	$(INSTALL) runtime --device '$(DEVICE)' --torch-index '$(TORCH_INDEX)'
	@rm -f $(VENV)/.installed-runtime-*
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	$(INSTALL) dev
	@touch $@

$(SPARK): requirements/spark.txt $(DEV)
	$(INSTALL) spark
	@touch $@
