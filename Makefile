# The short names. `make demo` and `make test` work in a fresh clone: they create the virtual environment first.
# A venv elsewhere: make test VENV=/tmp/venv. Another interpreter: make demo PYTHON=python3.12. More cores: make test TEST_WORKERS=8.

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

.PHONY: help demo test lint format ui accuracy-demo bench audit clean

help: ## Say what there is
	@echo 'make demo    install into $(VENV), then run the whole pipeline on the built-in data set'
	@echo 'make test    install with the development tools, then lint, type-check and test'
	@echo 'make lint    ruff, mypy and import-linter alone'
	@echo 'make format  let ruff rewrite the code'
	@echo 'make ui      open the Dagster UI and the MLflow UI on this machine'
	@echo 'make accuracy-demo  train every variant and baseline on the built-in data set, three seeds; takes an hour or two'
	@echo 'make bench   measure the heavy stages beside baselines and the limits of this machine; half an hour, 8 GB, 20 GB of disk'
	@echo 'make audit   write a bill of materials, and ask for known holes in what is installed'
	@echo 'make clean   remove the virtual environment and the caches; .macrec (runs and models) and data stay'

demo: $(VENV)/.installed-demo ## The whole pipeline on the built-in data set
	$(BIN)/macrec run demo

test: lint ## Everything that must hold before a change lands
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(VENV)/.installed-demo
	$(BIN)/macrec ui

accuracy-demo: $(VENV)/.installed-demo ## The ablation table of docs/results.md; goes on where it was cut off
	$(BIN)/python benchmarks/accuracy/ablations.py demo --seeds 1 2 3
	$(BIN)/python benchmarks/accuracy/tables.py

bench: $(VENV)/.installed-demo ## The table of docs/performance.md; the machine should have nothing else to do
	$(BIN)/python -m benchmarks.speed.run

# The tools have requirements of their own, which must not meet the package's.
AUDIT := $(VENV)-audit

audit: $(VENV)/.installed-demo
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	$(AUDIT)/bin/python deployment/audit.py $(BIN)/python

clean:
	rm -rf $(VENV) $(AUDIT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find macrec_pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The interpreter must be new enough and able to make environments; Debian ships the latter as a package of its own.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or older than Python 3.11. Install Python 3.11 or later, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is as new as the last install, so a change of the requirements installs again and nothing else does.
$(VENV)/.installed-demo: $(MANIFESTS) | $(BIN)/python
	@echo 'Installing the pinned requirements into $(VENV). The first time takes a few minutes.'
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(MANIFESTS) | $(BIN)/python
	@echo 'Installing the pinned requirements and the development tools into $(VENV).'
	$(PIP_INSTALL) -e '.[demo,dev]'
	touch $@ $(VENV)/.installed-demo
