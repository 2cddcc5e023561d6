# Short names for the commands of this project. Each target works in a fresh clone: it creates the virtual environment first.
# Virtual environment elsewhere: make test VENV=/tmp/venv
# Another interpreter:           make demo PYTHON=python3.12
# More cores:                    make test TEST_WORKERS=8

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= 2
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
MANIFESTS := pyproject.toml constraints.txt

.PHONY: help demo ui test test-all docs lint format coverage accuracy-demo bench audit lock clean

help: ## List the targets
	@echo 'make demo           Install into $(VENV), then run the whole pipeline on the built-in data set (about 7 minutes)'
	@echo 'make ui             Open the Dagster UI and the MLflow UI on this machine'
	@echo 'make test           Lint, check types and layers, and run all tests but the slow ones (at most 8 minutes on 2 cores)'
	@echo 'make test-all       The same, then the slow tests: deployment, kills in every stage, browser, a simulated quarter (about 30 minutes)'
	@echo 'make lint           Run ruff, mypy and import-linter only'
	@echo 'make format         Let ruff reformat the code'
	@echo 'make coverage       Run the tests of `make test` and show which lines they do not reach'
	@echo 'make docs           Build the documentation site in build/site, with a search and without access to the network'
	@echo 'make bench          Measure speed and memory of the heavy stages (half an hour, 8 GB of memory, 20 GB of disk)'
	@echo 'make accuracy-demo  Train every variant and baseline on the built-in data set with three seeds (one to two hours)'
	@echo 'make audit          Write a bill of materials and look up known vulnerabilities of the installed packages'
	@echo 'make lock           Write deployment/locked/, from which the container images are built'
	@echo 'make clean          Remove the virtual environment and the caches; .macrec (runs and models) and data stay'

demo: $(VENV)/.installed-demo
	$(BIN)/macrec run demo

PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: lint ## What must pass before a commit
	$(PYTEST) -m 'not slow'

test-all: test ## What must pass before a change lands; .ci/run calls it
	$(PYTEST) -m slow

coverage: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow' --cov --cov-report=term:skip-covered --cov-report=html

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## Warnings and broken links are errors
	$(BIN)/python docs/site/build.py build/site

ui: $(VENV)/.installed-demo
	$(BIN)/macrec ui

accuracy-demo: $(VENV)/.installed-demo ## The ablation table of docs/results.md; continues where it was interrupted
	$(BIN)/python benchmarks/accuracy/ablations.py demo --seeds 1 2 3
	$(BIN)/python benchmarks/accuracy/tables.py

bench: $(VENV)/.installed-demo ## The table of docs/performance.md; run nothing else on the machine meanwhile
	$(BIN)/python -m benchmarks.speed.run

# The tools get an environment of their own, so that their requirements do not mix with the package's.
AUDIT := $(VENV)-audit

audit: $(VENV)/.installed-demo
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	$(AUDIT)/bin/python deployment/audit.py $(BIN)/python

LOCK := $(VENV)-lock

lock:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --disable-pip-version-check --quiet uv==0.13.9
	$(PYTHON) deployment/lock.py $(LOCK)/bin/uv

clean:
	rm -rf $(VENV) $(AUDIT) $(LOCK) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find macrec_pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian ships the venv module as a separate package.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or is not Python 3.11, 3.12 or 3.13. Install one of them, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamp file is as new as the last installation, so only a change of the requirements installs again.
$(VENV)/.installed-demo: $(MANIFESTS) | $(BIN)/python
	@echo 'Installing the pinned requirements into $(VENV). The first time takes a few minutes.'
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(MANIFESTS) | $(BIN)/python
	@echo 'Installing the pinned requirements and the development tools into $(VENV).'
	$(PIP_INSTALL) -e '.[demo,dev]'
	touch $@ $(VENV)/.installed-demo
