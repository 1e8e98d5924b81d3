# The two commands of the README: `make demo` and `make test`. Both make their own virtual environment first.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check fast lint format lock schema clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/ready ## serve with sample users, teams and notifications, on the embedded PostgreSQL
	$(BIN)/tocsin demo

test: lint ## everything: lint, types, and all tests against real parts
	$(BIN)/pytest

check: lint fast ## what to run all the time: lint, types and the fast tests

fast: .venv/ready ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

lint: .venv/ready ## ruff, mypy and the contracts between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/ready ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/ready ## write schema.sql anew from the migrations
	$(BIN)/pytest -q tests/test_migrations.py --write-schema

lock: .venv/ready ## pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --group dev pyproject.toml --output-file requirements.lock

# uv is installed at the version that the lock file names, then installs exactly what the lock file holds.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Tocsin needs Python 3.11 or newer: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		[ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -q -y --no-install-recommends python3-venv; } \
		|| { echo 'Please install the package python3-venv.' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		"$$(sed -nE 's/^(uv==[^ ]+).*/\1/p' requirements.lock)"
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean: ## forget the virtual environment
	rm -rf .venv
