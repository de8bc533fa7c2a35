"""Writable layers that are used again: only untouched ones, and none outlives its program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain import Engine

HELLO = "pycontain/hello"


def spares(data_root: Path) -> list[str]:
    return [n for n in os.listdir(data_root / "containers") if n.startswith(".spare-")]


def run(engine: Engine) -> None:
    assert engine.run(HELLO, ["--exit", "0"], capture_output=True).exit_code == 0


def test_an_untouched_layer_is_used_again(engine: Engine, data_root: Path) -> None:
    """From the second container on; the number of spares does not grow with that of containers."""
    run(engine)
    assert spares(data_root) == []
    for _ in range(20):
        run(engine)
    assert len(spares(data_root)) == 1


@pytest.mark.parametrize("change", ["file", "mode", "owner", "xattr", "grown"])
def test_a_touched_layer_is_not(engine: Engine, data_root: Path, change: str) -> None:
    """Whatever a container can do to its root, the next one does not find it."""
    run(engine)
    container = engine.container(HELLO, ["--exit", "0"])
    container.start()
    container.wait()
    upper = data_root / "containers" / container.id / "upper"
    if change == "file":
        (upper / "left").write_text("x")
    elif change == "mode":
        upper.chmod(0o700)
    elif change == "owner":
        os.chown(upper, 1, 1)
    elif change == "xattr":
        os.setxattr(upper, "user.left", b"x")
    else:
        for i in range(400):
            (upper / f"{i:0200}").touch()
        for path in upper.iterdir():
            path.unlink()
    container.remove()
    assert spares(data_root) == []


def test_nothing_is_left_when_the_program_ends(data_root: Path, state_root: Path) -> None:
    """Neither after `close`, nor at the end of a program that never calls it."""
    script = (
        "import pycontain\n"
        "for i in range(3): assert pycontain.run('pycontain/hello', ['--exit', '0']).exit_code == 0"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert spares(data_root) == []
    with Engine(state_root=str(state_root), data_root=str(data_root)) as engine:
        for _ in range(3):
            run(engine)
        assert spares(data_root)
    assert spares(data_root) == []


def test_prune_removes_those_of_a_killed_program(engine: Engine, data_root: Path) -> None:
    """By its pid and start time, so that no other program's are taken."""
    script = (
        "import os, pycontain\n"
        "for i in range(3): pycontain.run('pycontain/hello', ['--exit', '0'])\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    for _ in range(2):
        run(engine)
    assert len(spares(data_root)) == 2
    report = engine.prune()
    assert any(".spare-" in path for path in report.leftovers)
    assert len(spares(data_root)) == 1
