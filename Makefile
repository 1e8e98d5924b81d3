# The two commands of the README: `make demo` and `make test`. Both make their own virtual environment first.

# The system's Python goes first where it is new enough: distributions build it optimised, which is worth half as much
# speed again. `make PYTHON=/path/to/python3` takes another.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
UV_VERSION := 0.13.9
BIN := .venv/bin
UV := .uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help demo test check fast soak coverage lint bench docs screenshots web format lock schema parts clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/ready ## serve with sample users, teams and notifications: open http://127.0.0.1:8080/
	$(BIN)/tocsin demo

# One worker for each core; what shares a fixture of its module stays with one worker. CI, and root, for whom `parts`
# installs what is missing, let no test be skipped but for the reasons in tests/support/selection.py.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder
STRICT := $(if $(CI)$(filter 0,$(shell id -u)),--strict-skips)

test: lint parts ## everything: lint, types, and all tests against real parts
	$(PYTEST) $(STRICT)

check: lint fast ## what to run all the time: lint, types and the fast tests

fast: .venv/ready ## the tests without a browser, programs of their own, kills or long work
	$(PYTEST) -q -m "not (browser or processes or chaos or slow)" --hypothesis-profile fast

soak: lint parts ## all tests, with all that chance decides many times over: properties, kills, fuzzing; hours
	$(PYTEST) --hypothesis-profile soak

coverage: .venv/ready parts ## all tests, and what they do not reach: branches too, and programs that tests start
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder -q
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/python -m tests.support.coverage

lint: .venv/ready ## ruff, mypy and the contracts between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/ready ## every claim of speed, measured: best on an otherwise idle machine
	for claim in list_page list_deep post_event batch unchanged read_all imports team visible memory streams transport push handed_over everybody fanout_devices inbox_page; do $(BIN)/python -m bench.$$claim || exit 1; done

docs: .venv/ready .docs/ready ## build the documentation site into site/; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --quiet --strict

screenshots: .venv/ready parts ## take the screenshots of README.md and docs/ from the demo
	$(BIN)/python docs/screenshots.py

web: web/node_modules ## build the scripts of the web inbox, the console and the demo from web/ into src/tocsin/web (needs Node)
	node web/build.mjs

format: .venv/ready ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/ready ## write schema.sql anew from the migrations
	$(BIN)/pytest -q tests/db/test_migrations.py --write-schema

COMPILE = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header

lock: $(UV) ## pin the newest versions that pyproject.toml and docs/requirements.in allow
	$(COMPILE) --group dev pyproject.toml --output-file requirements.lock
	$(COMPILE) docs/requirements.in --output-file docs/requirements.lock
	$(COMPILE) tests/repository/django/requirements.in --output-file tests/repository/django/requirements.lock

# The virtual environment holds exactly what the lock file says.
.venv/ready: requirements.lock pyproject.toml packages/client/pyproject.toml packages/phones/pyproject.toml $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python "$(PYTHON)" .venv
	VIRTUAL_ENV=.venv $(UV) pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --no-build-isolation \
		--editable . --editable packages/client --editable packages/phones
	@touch $@

# What builds the documentation has an environment of its own: no other command needs it.
.docs/ready: docs/requirements.lock $(UV)
	$(UV) venv --quiet --clear --no-python-downloads --python "$(PYTHON)" .docs
	VIRTUAL_ENV=.docs $(UV) pip sync --quiet --require-hashes docs/requirements.lock
	@touch $@

web/node_modules: web/package-lock.json
	cd web && npm ci --ignore-scripts
	@touch $@

# uv comes by pip, which any Python with the module ensurepip can make.
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

# The pages are tested in Debian's Chromium, with fonts that have Arabic letters, and the transport of pushes against
# servers that nobody here wrote; these are only installed, not started. Without the last three some tests skip.
parts:
	@if ! { command -v chromium && command -v nginx && command -v nghttpd && command -v pgbouncer; } >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then \
			apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
				chromium fonts-noto-core nginx-light nghttp2-server pgbouncer; \
		elif ! command -v chromium >/dev/null; then \
			echo 'Please install the packages chromium and fonts-noto-core.' >&2; exit 1; \
		fi; fi

clean: ## forget the virtual environments and the documentation site
	rm -rf .venv .uv .docs site
