# Two commands do everything on a machine that has python3 and make: `make demo` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tests wait for most of their time: one process more than there are processors.
JOBS := $(shell expr 1 + $$(python3 -c 'import os; print(os.cpu_count() or 1)'))

.PHONY: help demo test test-slow test-poll soak lint types check docs manifests chaos audit lock bench clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# The requirements are pinned, with hashes, by the lock file.
$(STAMP): pyproject.toml requirements-dev.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)  ## the whole life of a run, on a PostgreSQL of its own (KEEP=1: stay up)
	$(PYTHON) -m notifyworker demo $(if $(KEEP),--keep)

test: $(STAMP)  ## all tests, against real PostgreSQL 18 and 16 (ARGS="-k name" for some)
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS) || { \
		echo 'What was red is looked at once more, alone: red again fails; else it is a race, of the test or of the product.'; \
		$(PYTHON) -m pytest --last-failed --last-failed-no-failures none $(ARGS); }

test-slow: $(STAMP)  ## the faults that take long to inject or to notice, four minutes (ARGS=-s: with figures)
	$(PYTHON) -m pytest -m slow $(ARGS)

test-poll: $(STAMP)  ## all tests once more, with workers that hear no notification and find everything by polling
	NOTIFYWORKER_TEST_LISTEN=off $(PYTHON) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

soak: $(STAMP)  ## a worker under steady mixed load, and whether it grows (MINUTES=30)
	$(PYTHON) tests/soak.py $(if $(MINUTES),--minutes $(MINUTES))

lint: $(STAMP)  ## ruff, and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(STAMP)  ## mypy --strict
	$(VENV)/bin/mypy

docs: $(STAMP)  ## the docs site, into build/site; a link that leads nowhere is an error (one of the tests, too)
	$(PYTHON) docs/assemble.py build/docs
	$(VENV)/bin/zensical build --clean --strict

check: lint types test  ## all of it, as CI does

# Tools that look at the requirements, and are none of them.
TOOLS := $(VENV)/tools

$(TOOLS)/.installed: $(STAMP)
	python3 -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' 'uv>=0.13,<0.14' 'kubernetes-validate>=1.35'
	touch $@

audit: $(TOOLS)/.installed  ## known vulnerabilities of what is pinned; asks the package index over the network
	$(TOOLS)/bin/pip-audit --strict --require-hashes --disable-pip -r requirements-dev.txt || \
		{ echo "not audited, or vulnerable: see above (without a network nothing can be said)" >&2; exit 1; }

lock: $(TOOLS)/.installed  ## pin anew what pyproject.toml asks for, with hashes (ARGS=--upgrade: the newest)
	$(TOOLS)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev --group dev \
		pyproject.toml -o requirements-dev.txt $(ARGS)

manifests: $(TOOLS)/.installed  ## deploy/kubernetes against Kubernetes' own schemas (CRDS="FILE..": and KEDA's and CloudNativePG's)
	$(TOOLS)/bin/kubernetes-validate --strict deploy/kubernetes/migrate.yaml deploy/kubernetes/worker.yaml
	$(if $(CRDS),$(PYTHON) deploy/crds.py $(CRDS))

chaos: $(STAMP)  ## fleets that are hurt, and a ledger of what became of it (SHORT=1 SEED=7 ONLY=claim MUTATE=1)
	PYTHONPATH=tests $(PYTHON) -m chaos $(if $(MUTATE),mutate,$(if $(SHORT),--short)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only "$(ONLY)")

# A venv of its own for benchmarks: ours as locked, and the peers. arq has another; Node peers need node and npm.
BENCH := benchmarks/.venv
BENCH_PIP := -m pip install --quiet --disable-pip-version-check
BENCH_NODE := benchmarks/contenders

$(BENCH)/.installed: pyproject.toml requirements-dev.txt $(wildcard benchmarks/requirements-*.txt)
	python3 -m venv $(BENCH)
	$(BENCH)/bin/python $(BENCH_PIP) --require-hashes -r requirements-dev.txt
	$(BENCH)/bin/python $(BENCH_PIP) --no-deps --no-build-isolation --editable .
	-$(BENCH)/bin/python $(BENCH_PIP) -r benchmarks/requirements-peers.txt
	-python3 -m venv $(BENCH)-arq && $(BENCH)-arq/bin/python $(BENCH_PIP) -r benchmarks/requirements-arq.txt
	touch $@

$(BENCH_NODE)/node_modules/.installed: $(BENCH_NODE)/package.json $(BENCH_NODE)/package-lock.json
	-if command -v npm >/dev/null; then cd $(BENCH_NODE) && npm ci --silent --no-audit --no-fund --ignore-scripts && touch node_modules/.installed; fi

bench: $(BENCH)/.installed $(BENCH_NODE)/node_modules/.installed  ## us beside the peers (ONLY=drain CONTENDERS=floor,us N=100000 ROUNDS=3)
	$(BENCH)/bin/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(CONTENDERS),--contenders $(CONTENDERS),--save) \
		$(if $(N),--n $(N)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)
	$(if $(CONTENDERS),,$(BENCH)/bin/python -m benchmarks report)

clean:  ## remove what was made here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
