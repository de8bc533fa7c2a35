# The verbs that people type. `make venv` first; every other target uses the .venv it makes.
SHELL := /bin/bash
.DEFAULT_GOAL := venv
VENV ?= .venv
PY := $(VENV)/bin/python
NATIVE := src/pycontain/_native
C_SOURCES := $(wildcard $(NATIVE)/*.c $(NATIVE)/*.h)

# ---- venv: packages, virtual environment, extension and static programs --------------------
# Quick when nothing changed: the stamp is newer than everything that the build reads. Rebuild after
# a change in C or in setup.py: `make venv`. On Debian 12 as root it installs what is missing.
STAMP := $(VENV)/.pycontain-stamp
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check
# A pyenv shim exists for versions that are not active, so ask each candidate to run.
FIND_PYTHON = for p in python3.11 python3 python3.12 python3.13 /usr/bin/python3.11; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v "$$p"; break; }; done

.PHONY: venv
venv: $(STAMP)

$(VENV)/bin/python:
	@need=(); \
	command -v gcc >/dev/null || need+=(gcc); \
	echo '#include <stdio.h>' | $${CC:-gcc} -E - >/dev/null 2>&1 || need+=(libc6-dev); \
	ldconfig -p | grep -q 'libseccomp[.]so[.]2' || need+=(libseccomp2); \
	python=$$($(FIND_PYTHON)); \
	[ -n "$$python" ] || need+=(python3.11 python3.11-venv); \
	[ -n "$$python" ] && "$$python" -c 'import os, sys, sysconfig as s; \
	sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || need+=(python3.11-dev); \
	if [ $${#need[@]} -gt 0 ]; then \
		[ $$(id -u) = 0 ] || { echo "make venv: please install $${need[*]}" >&2; exit 1; }; \
		apt-get update -q; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
			"$${need[@]}"; \
	fi; \
	python=$$($(FIND_PYTHON)); \
	[ -n "$$python" ] || { echo "make venv: no Python >= 3.11 with venv" >&2; exit 1; }; \
	"$$python" -m venv $(VENV)

$(STAMP): pyproject.toml setup.py $(NATIVE)/build.py $(C_SOURCES) | $(VENV)/bin/python
	$(PIP_INSTALL) 'setuptools>=65' wheel 'cffi>=1.15'
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	$(PY) $(NATIVE)/build.py stub
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

asan: venv
	$(PY) tests/fuzz/asan.py 200000

# ---- clean ------------------------------------------------------------------------------
.PHONY: clean
clean:
	rm -rf build dist src/*.egg-info $(NATIVE)/bin $(NATIVE)/*.so $(NATIVE)/_ext.c $(STAMP)

# ---- run, test, VM: owned by the venue (keep everything above free of them) ------------------
# What the tests use besides what the venv needs: peers, image tools, QEMU, a cross compiler.
TEST_PACKAGES := crun runc bubblewrap podman skopeo umoci buildah mmdebstrap qemu-system-x86 \
	e2fsprogs strace stress-ng gcc-aarch64-linux-gnu libc6-dev-arm64-cross tmux iproute2 \
	nftables procps uidmap kmod xz-utils zstd libcap2-bin ca-certificates git nodejs \
	busybox-static
PYTEST := $(VENV)/bin/python -m pytest -q
RUN := $(VENV)/bin/pycontain run --rm

.PHONY: run test test-packages test-privileged test-vm bench
run: venv
	$(RUN) --memory 64M --cpus 0.5 --pids-limit 64 --stats pycontain/hello

# Every venue; goes on after a failure; the last line is the sum. Also what .ci/run calls.
test:
	.ci/sections test-packages venv lint lint-c asan test-unit test-privileged test-vm

test-packages:
	@dpkg-query -W -f '$${Status}\n' $(TEST_PACKAGES) 2>&1 | grep -vq ' installed$$' || exit 0; \
	apt-get update -q </dev/null && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qy --no-install-recommends $(TEST_PACKAGES) </dev/null

test-privileged: venv
	$(PYTEST) tests/privileged

# Debian 12 with systemd and pure cgroup v2 in QEMU; ARGS='tests/privileged/test_x.py -x' to choose.
test-vm: venv
	$(PY) tests/privileged/vm/run.py $(ARGS)

# The claims of the README, measured against peers on PATH and a bare floor in the same run.
bench: venv
	$(PY) bench/launch.py
	$(PY) bench/exec.py
	$(PY) bench/memory.py
