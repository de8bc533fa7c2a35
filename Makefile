# The verbs that people type. `make venv` first; every other target uses the .venv it makes.
SHELL := /bin/bash
.DEFAULT_GOAL := venv
VENV ?= .venv
PY := $(VENV)/bin/python
NATIVE := src/pycontain/_native
C_SOURCES := $(wildcard $(NATIVE)/*.c $(NATIVE)/*.h)

# ---- venv: packages, virtual environment, extension and static programs --------------------
# Quick when nothing changed: the stamp is newer than everything that the build reads.
STAMP := $(VENV)/.pycontain-stamp

.PHONY: venv
venv: $(STAMP)

$(VENV)/bin/python:
	bash tools/bootstrap.sh $(VENV)

$(STAMP): pyproject.toml setup.py $(NATIVE)/build.py $(C_SOURCES) | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check 'setuptools>=65' wheel 'cffi>=1.15'
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]'
	touch $@

# ---- lint -------------------------------------------------------------------------------
.PHONY: lint lint-c
lint: venv
	$(VENV)/bin/ruff check src tests setup.py
	$(VENV)/bin/ruff format --check src tests setup.py
	$(VENV)/bin/mypy

lint-c:
	$(PY) $(NATIVE)/build.py lint

# ---- tests without root, sanitizers --------------------------------------------------------
.PHONY: test-unit asan
test-unit: venv
	$(VENV)/bin/pytest -q tests --ignore=tests/privileged

asan:
	$(PY) $(NATIVE)/build.py asan

# ---- clean ------------------------------------------------------------------------------
.PHONY: clean
clean:
	rm -rf build dist src/*.egg-info $(NATIVE)/bin $(NATIVE)/*.so $(NATIVE)/_ext.c $(STAMP)

# ---- run, test, VM: owned by the venue (keep everything above free of them) ------------------
