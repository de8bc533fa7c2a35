"""The command line as a function: words in, exit code and output out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from pycontain.cli import app

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import FakeEngine


class Ran(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    """`cli("ps", "-a")`"""

    def __call__(self, *words: str) -> Ran: ...


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def cli(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    monkeypatch.delenv("PYCONTAIN_DEBUG", raising=False)

    def run(*words: str) -> Ran:
        code = app.run(words, open_engine=engine.open)
        return Ran(code, *capsys.readouterr())

    return run
