# Everything here needs Python 3.11 or newer, git and make, and nothing else that is installed by hand.
# `.venv` is made inside the clone from requirements-dev.lock, and made again only when a lock or pyproject.toml changes.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The first that is new enough, and first of all one that was built with optimisation, as distributions do and version
# managers often do not: without it a chunk costs a sixth more. (Names that version managers leave in PATH may not run.)
NEW_ENOUGH := import ensurepip, sys, sysconfig; sys.version_info >= (3, 11) or sys.exit(1)
OPTIMISED := sys.exit("--enable-optimizations" not in sysconfig.get_config_var("CONFIG_ARGS") and sys.base_prefix != "/usr")
PYTHON ?= $(shell for test in '$(NEW_ENOUGH); $(OPTIMISED)' '$(NEW_ENOUGH)'; do \
  for name in python3.11 python3 python3.12 python3.13 python3.14 /usr/bin/python3.11 /usr/bin/python3; do \
    $$name -c "$$test" 2>/dev/null && echo $$name && exit; done; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := gateway backends tenancy loadtest benchmarks demo tests

.PHONY: help install run test check fix bench costs lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv from the lock file (nothing happens where it is up to date)

$(STAMP): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Penstock needs Python 3.11 or newer: make install PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into $(VENV) from requirements-dev.lock (half a minute to a minute, once) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed."

run: $(STAMP) ## Start the demo: a gateway on 127.0.0.1:8080, two llama.cpp pods, three tenants; Ctrl-C ends it
	@$(BIN)/python -m demo.run

test: $(STAMP) ## Run every test (ARGS="-k ledger" narrows them)
	@$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## Lint, format, strict types, import contracts, dead code, spelling
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture
	$(BIN)/codespell

fix: $(STAMP) ## Let ruff mend and format what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(STAMP) ## Measure the data path beside nginx and two routers, a quarter of an hour (ARGS=--quick: three minutes)
	@$(BIN)/python -m benchmarks.side_by_side $(ARGS)

costs: $(STAMP) ## Count what the data path costs, against benchmarks/costs.json (needs valgrind; ARGS=--write: write it)
	@$(BIN)/python -m benchmarks.cost_gate $(ARGS)

lock: ## Resolve both lock files anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 2; }
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  -c requirements.lock pyproject.toml --group dev -o requirements-dev.lock

clean: ## Remove what was built (the demo keys stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis benchmarks/results demo/*.log
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
