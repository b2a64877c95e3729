# Everything runs in a virtual environment of its own, made from the lock file.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Offline: neither a hub nor W&B is called by a test or the demo.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo bench quick test test-faults check lint types structure compat docs docs-cli docs-serve dist lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: requirements.lock pyproject.toml
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raybrew needs Python 3.11 or newer, got %s" % sys.version)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --use-pep517 --requirement requirements.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/installed ## two teachers, one student, real sentences, a table
	@WANDB_MODE=offline $(BIN)/python -m experiments.first_run

bench: $(VENV)/installed ## every figure of speed and size, a table and runs/bench/bench.json
	@WANDB_MODE=offline $(BIN)/python -m experiments.benchmarks

quick: $(VENV)/installed ## lint, types, the quick tests without Ray: what to run while working
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest -m "not ray and not long and not faults" -n auto

test: $(VENV)/installed ## lint, types, every test but the random schedules of faults
	@$(MAKE) --no-print-directory lint types check

test-faults: $(VENV)/installed ## random schedules of faults
	@$(BIN)/python -m pytest -m faults

# Ray's tests often wait for processes to start. Those in which time matters come first; beside them,
# with less priority, run the others with Ray, with the least those without; both are shown at the end.
check quick test-faults: export WANDB_MODE := offline
check: $(VENV)/installed
	@nice -n 19 $(BIN)/python -m pytest -m "not ray and not faults" -n auto > $(VENV)/plain.log 2>&1 & plain=$$!; \
	nice -n 10 $(BIN)/python -m pytest -m "beside and not faults" > $(VENV)/beside.log 2>&1 & beside=$$!; \
	trap "kill $$plain $$beside" INT TERM; \
	$(BIN)/python -m pytest -m "ray and not beside and not faults"; first=$$?; \
	wait $$beside; second=$$?; wait $$plain; third=$$?; \
	cat $(VENV)/beside.log $(VENV)/plain.log; \
	[ $$first -eq 0 ] && [ $$second -eq 0 ] && [ $$third -eq 0 ]

lint: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache > $(VENV)/layers.log || { cat $(VENV)/layers.log; exit 1; }

types: $(VENV)/installed
	@$(BIN)/pyright

structure: $(VENV)/installed ## count modules, lines, importers, words
	@$(BIN)/python -m tests.structure

compat: ## the quick tests with the oldest and the newest torch, transformers and Ray that are allowed
	@.ci/compat

.venv-docs/installed: requirements-docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check install -qq --requirement requirements-docs.txt
	@touch $@

docs: .venv-docs/installed ## the documentation site in site/, its links checked
	@.venv-docs/bin/zensical build --clean --strict

docs-cli: $(VENV)/installed ## write docs/reference/cli.md from the commands' help
	@$(BIN)/python -m typer raybrew.cli utils docs --name raybrew --title "Command line" | \
	$(BIN)/python -c "import html, sys; print(html.unescape(sys.stdin.read()).rstrip())" > docs/reference/cli.md

docs-serve: .venv-docs/installed ## the same at http://localhost:8000, built again when a page changes
	@.venv-docs/bin/zensical serve

dist: $(VENV)/installed ## wheel and sdist in dist/
	@rm -rf dist && $(BIN)/python -m hatchling build

lock: ## write requirements.lock from pyproject.toml
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 hatchling editables --editable '.[peft,tensorboard,tune]' --group dev
	.venv-lock/bin/python -m pip freeze --exclude raybrew --exclude-editable | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv-lock

clean: ## remove the environment, runs and caches
	rm -rf $(VENV) .venv-docs site dist runs cache .pytest_cache .ruff_cache .hypothesis
