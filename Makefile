# Everything sets itself up in .venv; a machine needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The engines' own modules, and torch for CPUs, whose wheels PyTorch keeps on an index of its own.
ENGINES := .venv-engines
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
INSTANCE ?= instances/h100-128.yaml
OPTIONS ?= --time-limit 120
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
COUNT ?= 300
FIDELITY ?= reports/2026-11-27-fidelity
SIMGRID ?= reports/2026-11-24-simgrid

# Tests start processes by the hundred: without bytecode on the disk, each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help solve test test-all test-lowest coverage mutants fidelity release-figures docs docs-versions docs-links lint lint-pages types clean

help:  ## Show what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

solve: $(VENV)/.run  ## Solve INSTANCE (the seed plan), verify the placement, write it with its DAGs
	$(BIN)/moe-placer solve $(INSTANCE) $(OPTIONS)

test: $(VENV)/.dev  ## Run the tests, without the slow ones
	$(BIN)/pytest -n auto --dist worksteal

test-all: $(VENV)/.dev  ## Run all tests, the slow ones too, with random examples from SEED (printed)
	$(BIN)/pytest -n auto --dist worksteal -m '' --hypothesis-profile=random --hypothesis-seed=$(SEED)

test-lowest:  ## Run the tests with the lowest allowed versions of the dependencies (needs uv)
	uv venv --quiet --seed --python 3.11 .venv-lowest
	uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/pytest -n auto

coverage: $(VENV)/.dev  ## Tell which lines no test runs, processes of their own counted; at least 95% must be run
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95

mutants: $(VENV)/.mutants  ## Change the core in COUNT places, one at a time, and tell which change no test notices
	$(BIN)/python tests/mutants.py --count $(COUNT)

fidelity: $(VENV)/.fidelity  ## Predict what others measured, real packets (as root) and SimGrid; write both reports (an hour)
	$(BIN)/python -m benchmarks.fidelity $(FIDELITY)
	$(MAKE) $(VENV)/.simgrid
	$(BIN)/python -m benchmarks.simgrid $(SIMGRID)

release-figures: $(VENV)/.dev  ## Measure this checkout against commit BEFORE and EPLB's own code, append rows, make the page (idle machine)
	@test -n "$(BEFORE)" || { echo "name the release before: make release-figures BEFORE=v0.1.0" >&2; exit 1; }
	$(BIN)/python -m benchmarks.release --before $(BEFORE)

docs: $(VENV)/.docs  ## Build the documentation as a site in build/site; a warning is an error
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs/site -d build/doctrees . build/site
	@echo "build/site/index.html"

docs-versions: $(VENV)/.docs  ## The same with the sites of all releases beside it, and a list of them on every page
	$(BIN)/python docs/site/build_versions.py build/site

docs-links: $(VENV)/.docs  ## Ask every other site that the documentation links to (needs the network)
	$(BIN)/sphinx-build -q -W --keep-going -b linkcheck -c docs/site -d build/doctrees . build/links

engines: $(ENGINES)/.ready  ## Hold exported files to the engines' own loaders (fetches their packages once)
	$(ENGINES)/bin/pytest -m engines

lint: $(VENV)/.dev lint-pages  ## Check style, of the pages' JavaScript too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-pages: $(VENV)/.javascript  ## Check style and types of the pages' JavaScript (needs Node.js)
	$(VENV)/javascript/node_modules/.bin/biome lint --error-on-warnings
	$(VENV)/javascript/node_modules/.bin/tsc -p .javascript/dag-page.json
	$(VENV)/javascript/node_modules/.bin/tsc -p .javascript/report.json

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

clean:  ## Remove what was built and installed
	rm -rf $(VENV) $(ENGINES) build dist *.egg-info out

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "moe_placer needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.javascript: package.json | $(BIN)/python
	@command -v npm >/dev/null || { echo "the pages' JavaScript is checked with Node.js: install it (Debian: nodejs npm)" >&2; exit 1; }
	mkdir -p $(VENV)/javascript
	cp package.json $(VENV)/javascript/
	npm install --prefix $(VENV)/javascript --silent --no-audit --no-fund --no-package-lock
	@touch $@

$(VENV)/.run: pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@ $(VENV)/.run

# Its own dependencies are not needed: tables are read from the installed package.
$(VENV)/.fidelity: pyproject.toml requirements.lock | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'aiconfigurator-core>=0.12,<0.13'
	@touch $@

# Compiles for 7 minutes on two cores; SimGrid 4.1 needs an older pybind11 than it asks for.
$(VENV)/.simgrid: pyproject.toml requirements.lock | $(VENV)/.dev
	@command -v cmake >/dev/null && command -v c++ >/dev/null && ls -d /usr/include/boost /usr/local/include/boost /opt/homebrew/include/boost $$BOOST_ROOT 2>/dev/null | grep -q . || \
		{ echo "SimGrid is compiled: install a C++ compiler, CMake and Boost's headers (Debian: g++ cmake libboost-dev)" >&2; exit 1; }
	@echo 'pybind11<3' > $(VENV)/pybind11.txt
	PIP_CONSTRAINT=$(CURDIR)/$(VENV)/pybind11.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/$(VENV)/pybind11.txt \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--editable '.[dev,simgrid]'
	@touch $@

$(VENV)/.docs: pyproject.toml requirements.lock | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,docs]'
	@touch $@

$(VENV)/.mutants: pyproject.toml requirements.lock | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,mutants]'
	@touch $@

$(ENGINES)/.ready: pyproject.toml requirements.lock tests/fetch_engines.py
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' || \
		$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) '$(TORCH)'
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--editable '.[dev]'
	$(ENGINES)/bin/python tests/fetch_engines.py $(ENGINES)/sources
	@touch $@
