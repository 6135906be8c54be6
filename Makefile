# Two commands do everything on a machine that has python3 and make: `make demo` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo test lint types check clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# The requirements are pinned, with hashes, by the lock file.
$(STAMP): pyproject.toml requirements-dev.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)  ## the whole life of a run, on a PostgreSQL of its own (KEEP=1: stay up)
	$(PYTHON) -m notifyworker demo $(if $(KEEP),--keep)

test: $(STAMP)  ## all tests, against real PostgreSQL 18 and 16 (ARGS="-k name" for some)
	$(PYTHON) -m pytest $(ARGS)

lint: $(STAMP)  ## ruff, and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(STAMP)  ## mypy --strict
	$(VENV)/bin/mypy

check: lint types test  ## all of it, as CI does

clean:  ## remove what was made here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
