# `make help` lists the targets. Each creates the virtual environment that it needs.

# Prefer the system's Python if it is new enough: the optimised builds of distributions are 1.5 times as fast as others.
# Choose another with `make PYTHON=/path/to/python3`.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
UV_VERSION := 0.13.9
BIN := .venv/bin
UV := .uv/bin/uv

# Each test run and each program that it starts would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test cells check units fast chaos soak coverage lint bench sbom docs screenshots web format lock schema parts clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/ready ## serve with sample users, teams and notifications: open http://127.0.0.1:8080/
	$(BIN)/tocsin demo

# Two workers per core; tests that share a fixture of their module run on one worker. In CI and as root, for whom `parts`
# installs missing programs, a test may be skipped only for the reasons in tests/support/selection.py.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --no-loadscope-reorder
STRICT := $(if $(CI)$(filter 0,$(shell id -u)),--strict-skips)

test: lint parts ## lint, types, and all tests against real databases, servers and browsers
	$(PYTEST) $(STRICT)
	$(PYTEST) -q --second-cell $(IN_SECOND_CELL)

# What a company does, from events and marks to streams and pushes.
IN_SECOND_CELL := $(addprefix tests/,test_streams.py test_inbox.py test_events.py test_resolutions.py test_devices.py \
	api/test_company_borders.py api/test_garbage.py api/test_idempotency.py push/test_dispatcher.py)

cells: .venv/ready ## the tests of the API, of streams and of pushes against a service of two cells, in the second one
	$(PYTEST) -q --second-cell -m "not (browser or processes or slow)" tests/api tests/push $(wildcard tests/test_*.py)

check: lint units ## lint, types and the tests without a database, to run after each change

units: .venv/ready ## only the tests that take milliseconds: without a database, browser, subprocesses, chaos and slow tests
	$(PYTEST) -q -m "not (browser or processes or chaos or slow or database)" --hypothesis-profile fast

fast: .venv/ready ## the tests without a browser, subprocesses, chaos and slow tests
	$(PYTEST) -q -m "not (browser or processes or chaos or slow)" --hypothesis-profile fast

# FAULTS="power-cut worker-killed": only these. MINUTES: for all faults together. SEED: repeats a run.
chaos: .venv/ready parts ## make every fault under load for half an hour, and write what it did into the docs
	$(BIN)/pytest -q tests/chaos -m scenario --faults "$(FAULTS)" --minutes $(or $(MINUTES),30) --write-faults
	$(if $(FAULTS),,$(BIN)/pytest -q tests/api/test_schemathesis.py --hypothesis-profile chaos)

soak: lint parts ## an hour of load whose use of memory, files and disk must level off; then all tests, with many more rounds
	$(BIN)/python -m bench.soak
	$(PYTEST) --hypothesis-profile soak

coverage: .venv/ready parts ## all tests with a report of uncovered lines and branches, subprocesses included
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n auto --maxprocesses 8 --no-loadscope-reorder -q
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/python -m tests.support.coverage

# Those up to 0033 are older than the check, and a released migration never changes.
NEW_MIGRATIONS := $(filter-out $(wildcard $(addprefix src/tocsin/db/migrations/,00[0-2]* 003[0-3]*)),\
	$(wildcard src/tocsin/db/migrations/*.sql))

lint: .venv/ready ## ruff, mypy, the import contracts between modules, unused dependencies and code, locks of migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry src
	$(BIN)/vulture
	@for file in $(NEW_MIGRATIONS); do \
		grep -q '^-- outside a transaction' $$file && how= || how=--assume-in-transaction; \
		$(BIN)/squawk $$how $$file || exit 1; done

bench: .venv/ready ## measure all performance claims and write docs/benchmarks.md; needs an otherwise idle machine
	$(BIN)/python -m bench.report

sbom: .venv/ready ## write the bill of materials (CycloneDX) of the release into dist/
	mkdir -p dist
	$(BIN)/python deploy/sbom.py > dist/tocsin.cdx.json

docs: .venv/ready .docs/ready ## build the documentation site into site/; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --quiet --strict

screenshots: .venv/ready parts ## take the screenshots of README.md and docs/ from the demo
	$(BIN)/python docs/screenshots.py

web: web/node_modules ## build the scripts of the web inbox, the console and the demo from web/ into src/tocsin/web (needs Node)
	node web/build.mjs

format: .venv/ready ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/ready ## regenerate schema.sql from the migrations
	$(BIN)/pytest -q tests/db/test_migrations.py --write-schema

COMPILE = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header

lock: $(UV) ## update the lock files to the newest versions that pyproject.toml and the requirements.in files allow
	$(COMPILE) --group dev pyproject.toml --output-file requirements.lock
	$(COMPILE) bench/peers/requirements.in --output-file bench/peers/requirements.lock
	$(COMPILE) docs/requirements.in --output-file docs/requirements.lock
	$(COMPILE) tests/repository/django/requirements.in --output-file tests/repository/django/requirements.lock
	$(COMPILE) tests/repository/transactions/requirements.in --output-file tests/repository/transactions/requirements.lock

# The virtual environment has exactly the packages of the lock file.
.venv/ready: requirements.lock pyproject.toml packages/client/pyproject.toml packages/phones/pyproject.toml $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python "$(PYTHON)" .venv
	VIRTUAL_ENV=.venv $(UV) pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --no-build-isolation \
		--editable . --editable packages/client --editable packages/phones
	@touch $@

# A separate environment for the documentation: no other target needs its packages.
.docs/ready: docs/requirements.lock $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python "$(PYTHON)" .docs
	VIRTUAL_ENV=.docs $(UV) pip sync --quiet --require-hashes docs/requirements.lock
	@touch $@

web/node_modules: web/package-lock.json
	cd web && npm ci --ignore-scripts
	@touch $@

# Install uv with pip; this needs a Python with the module ensurepip.
$(UV):
	@test -n "$(PYTHON)" || { echo 'Tocsin needs Python 3.11 or newer: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
	@set -e; for python in "$(PYTHON)" python3; do \
		if $$python -c 'import ensurepip' 2>/dev/null; then maker=$$python; break; fi; done; \
	if [ -z "$$maker" ]; then \
		if [ "$$(id -u)" != 0 ]; then echo 'Please install the package python3-venv.' >&2; exit 1; fi; \
		apt-get update -q && apt-get install -q -y --no-install-recommends python3-venv; maker="$(PYTHON)"; \
	fi; \
	$$maker -m venv --clear .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# Programs that tests run: Debian's Chromium with Arabic fonts for the pages, libatomic1 for the program that drives it, curl, and
# nginx, nghttpd and pgbouncer as independent servers. They are installed but not started. faketime has the library for
# wrong clocks. Without the last four, some tests are skipped.
MUST := command -v chromium && command -v curl && $(BIN)/playwright --version
parts: .venv/ready
	@if ! { $(MUST) && command -v nginx && command -v nghttpd && command -v pgbouncer && command -v faketime; } >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ]; then \
			apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
				chromium curl fonts-noto-core libatomic1 nginx-light nghttp2-server pgbouncer faketime; \
		elif ! { $(MUST); } >/dev/null 2>&1; then \
			echo 'Please install the packages chromium, curl, fonts-noto-core and libatomic1.' >&2; exit 1; \
		fi; fi

clean: ## delete the virtual environments, the documentation site, and packages of tests
	rm -rf .venv .uv .docs .build site
