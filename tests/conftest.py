"""What all tests share. Tests outside tests/privileged need no root and leave nothing behind.

A test that the machine can't run skips and names what is missing; PYCONTAIN_MUST_RUN=1 makes that
a failure, so that nothing goes untested unnoticed (tests/privileged/conftest.py has its own rule).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

MUST_RUN = os.environ.get("PYCONTAIN_MUST_RUN") == "1"
PRIVILEGED = Path(__file__).parent / "privileged"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` writes the golden files anew instead of comparing with them."""
    parser.addoption("--update-golden", action="store_true")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip into a failure where everything must run."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    privileged = item.path.is_relative_to(PRIVILEGED)
    if MUST_RUN and not privileged and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"PYCONTAIN_MUST_RUN=1 and {reason}"


@pytest.fixture
def no_fd_left() -> Iterator[None]:
    """Fails the test if it leaves a descriptor open."""
    before = _open_fds()
    yield
    assert _open_fds() == before


def _open_fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory's own descriptor
            continue
    return found
