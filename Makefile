# noneq: `make serve` starts the service, `make help` tells the rest.
#
# Variables, on the command line or in the environment:
#   PYTHON       the interpreter the virtual environment is made from (python3; 3.11 or newer)
#   VENV         where the virtual environment lies (.venv)
#   TORCH        another PyTorch than the pinned one, say TORCH='torch==2.11.*'
#   CONSTRAINTS  the file of pinned versions (constraints.txt); empty for no pins
#   ARGS         more arguments for the command, say make serve ARGS='--port 9000'
#   PYTEST_ARGS  how make test calls pytest, say PYTEST_ARGS='tests/diffusion -x'
#   NONEQ_*      the settings of the service, say make serve NONEQ_PORT=9000

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
CONSTRAINTS ?= constraints.txt
ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 1

RUN := $(VENV)/bin/python
PINS := $(VENV)/pins.txt
SERVE := $(VENV)/.serve
DEV := $(VENV)/.dev

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: serve
serve: $(SERVE) ## start the service (port 8000; settings: NONEQ_*)
	exec $(RUN) -m service $(ARGS)

.PHONY: test
test: $(DEV) ## run the tests
	$(RUN) -m pytest $(PYTEST_ARGS)

.PHONY: check
check: $(DEV) ## lint, format, types, imports; changes nothing
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

.PHONY: docs
docs: $(DEV) ## the documentation as a site, into build/docs
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going -c docs/site . build/docs

.PHONY: format
format: $(DEV) ## fix what can be fixed by itself: lint and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

.PHONY: figures
figures: $(DEV) ## draw the documentation's pictures anew from the models
	$(RUN) -m training figures $(ARGS)

.PHONY: paper
paper: $(DEV) ## the paper's experiments: fit, measure and draw what is not done yet, into docs/
	$(RUN) -m training paper $(ARGS)

.PHONY: install
install: $(DEV) ## the virtual environment with everything in it

.PHONY: clean
clean: ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The packages are installed in place (-e): after `git pull` the new code runs. pip is called again
# only when what to install has changed.
$(SERVE): pyproject.toml $(PINS)
	$(RUN) -m pip install -c $(PINS) -e '.[serve]'
	touch $@

$(DEV): pyproject.toml $(PINS)
	$(RUN) -m pip install -c $(PINS) -e '.[serve,train,ray,otel,dev,docs]'
	touch $(SERVE) $@

# The pins in force: the constraints file, with TORCH in the place of its torch. Rewritten on change only.
$(PINS): FORCE | $(VENV)/.made
	@{ cat $(or $(CONSTRAINTS),/dev/null); } | sed -e '$(if $(TORCH),/^torch==/d)' >$@.new
	@$(if $(TORCH),echo '$(TORCH)' >>$@.new)
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"noneq needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12")'
	[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(VENV)
	touch $@

.PHONY: FORCE
FORCE:
