# Two commands matter: `make demo` and `make test`. Each creates .venv first if it has to: `make demo` with all that a user
# needs, every other target with all that a contributor needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USABLE := $(VENV)/.usable
INSTALLED := $(VENV)/.installed
ARGS ?=

# Where it is set, each of the tests' many processes would compile torch, PyKEEN and the tests for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-gpu test-slow lint types audit bench bench-quick docs dist-check screenshots clean

demo: $(USABLE)
	$(BIN)/kgtrace demo $(ARGS)

# On all cores, a file of tests on one of them: fixtures of a module are made once, and Ray's tests do not meet.
test: $(INSTALLED) lint types
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

# The tests that compute on a GPU, on the one that torch sees; without one on a simulated GPU, as far as that goes.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r store indexer server

# Asks pypi.org for known vulnerabilities of what is installed: needs the network, so it is no part of `make lint`.
audit: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r $(VENV)/installed.txt $(ARGS) || \
	    { echo "audit: see above: a known vulnerability, or pypi.org could not be asked" >&2; exit 1; }

types: $(INSTALLED)
	$(BIN)/mypy

# kgtrace alone, and then beside its peers, each in an environment of its own in .bench (made once, over the network).
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.fb15k237
	$(BIN)/python -m benchmarks.targets
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench-quick: $(INSTALLED)
	$(BIN)/python -m benchmarks.peers --quick $(ARGS)

# The documentation as a site, in site/. Fails on links that lead nowhere.
docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict --quiet

# Wheel and source distribution in dist/, looked at, and installed in a clean environment. Needs a package index.
dist-check: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	KGTRACE_DIST=dist $(BIN)/pytest -m slow tests/end_to_end/test_distribution.py $(ARGS)

screenshots: $(INSTALLED)
	$(BIN)/python -m benchmarks.screenshots $(ARGS)

# Modules are compiled when first imported, which most never are.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

$(USABLE): pyproject.toml hatch_build.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[cpu,pykeen]"
	touch $@

$(INSTALLED): pyproject.toml hatch_build.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[cpu,dev,docs]"
	touch $(USABLE) $@

clean:
	rm -rf $(VENV) .bench kgtrace-demo site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
