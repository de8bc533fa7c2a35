"""The leak guard itself: what it must notice, it notices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import leaks
import pytest


@contextmanager
def _descriptor(tmp_path: Path) -> Iterator[None]:
    fd = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    yield
    os.close(fd)


@contextmanager
def _mount(tmp_path: Path) -> Iterator[None]:
    target = tmp_path / "mounted"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
    yield
    subprocess.run(["umount", target], check=True)


@contextmanager
def _child(tmp_path: Path) -> Iterator[None]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def _zombie(tmp_path: Path) -> Iterator[None]:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield
    process.wait()


@pytest.mark.parametrize(
    ("make", "expected"),
    [(_descriptor, "fd "), (_child, "child "), (_zombie, "child ")],
)
def test_process_snapshot_sees(
    make: Callable[[Path], Iterator[None]], expected: str, tmp_path: Path
) -> None:
    """A leaked descriptor, child or zombie is named while it is there, and only then."""
    before = leaks.of_process()
    with ExitStack() as stack:
        stack.enter_context(make(tmp_path))  # type: ignore[arg-type]
        found = leaks.difference(before, leaks.of_process())
        assert any(line.startswith(f"left behind: {expected}") for line in found), found
    assert leaks.difference(before, leaks.of_process()) == []


def test_mount_is_seen_on_the_machine_and_below_a_root(tmp_path: Path) -> None:
    """A leaked mount is named by both snapshots while it is there."""
    before = leaks.of_machine()
    with _mount(tmp_path):
        line = f"left behind: mount {tmp_path}/mounted of tmpfs from /"
        assert line in leaks.difference(before, leaks.of_machine())
        below = leaks.of_roots(tmp_path / "state", tmp_path)
        assert line in leaks.difference(leaks.Snapshot(), below)


def test_machine_snapshot_sees_a_network_link() -> None:
    """An interface whose name is ours is a leak."""
    before = leaks.of_machine()
    add = ["ip", "link", "add", "pyc-leak", "type", "bridge"]
    if subprocess.run(add, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the bridge module")
    try:
        assert "left behind: link pyc-leak" in leaks.difference(before, leaks.of_machine())
    finally:
        subprocess.run(["ip", "link", "del", "pyc-leak"], check=True)


def test_roots_snapshot_sees_files_and_processes(tmp_path: Path) -> None:
    """A container directory and a process with the state root in its arguments are leaks."""
    state, data = tmp_path / "state", tmp_path / "store"
    (state / "containers" / "abc").mkdir(parents=True)
    (data / "containers" / "abc" / "upper").mkdir(parents=True)
    wait = [sys.executable, "-c", "print(flush=True); input()", str(state)]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()  # it has been executed: its arguments are visible
        found = leaks.difference(leaks.Snapshot(), leaks.of_roots(state, data))
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert f"left behind: directory {state}/containers/abc" in found
    assert f"left behind: directory {data}/containers/abc/upper" in found
    assert any(line.startswith(f"left behind: process {process.pid}") for line in found)


def test_lasting_files_of_a_state_root_are_no_leak(tmp_path: Path) -> None:
    """Socket and lock of a monitor are made once and stay; so does the containers directory."""
    (tmp_path / "containers").mkdir()
    for name in leaks.LASTING_FILES:
        (tmp_path / name).touch()
    assert leaks.of_roots(tmp_path, tmp_path / "data") == leaks.Snapshot()
