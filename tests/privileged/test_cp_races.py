"""Copying as root: owners, and a container that swaps directories for links meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.errors import PycontainError
from pycontain.runtime.cp import copy_in, copy_out


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A container's root, as a descriptor and a path."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "root"
    path.mkdir()
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield fd, path
    os.close(fd)


def test_owners(root: tuple[int, Path], tmp_path: Path) -> None:
    """root:root inside unless -a; ours outside unless -a; setuid does not come out without it."""
    fd, path = root
    source = tmp_path / "dir"
    source.mkdir()
    (source / "file").write_text("x")
    os.symlink("nowhere", source / "link")
    for each in (source, source / "file", source / "link"):
        os.chown(each, 1000, 1001, follow_symlinks=False)
    os.chmod(source / "file", 0o4755)
    copy_in(fd, str(source), "/plain")
    copy_in(fd, str(source), "/kept", archive=True)
    copy_in(fd, str(source), "/given", owner=(5, 6))
    for name, owner in (("plain", (0, 0)), ("kept", (1000, 1001)), ("given", (5, 6))):
        for each in (path / name, path / name / "file", path / name / "link"):
            status = os.lstat(each)
            assert (status.st_uid, status.st_gid) == owner
    assert os.stat(path / "kept/file").st_mode & 0o7777 == 0o4755
    copy_out(fd, "/kept/file", str(tmp_path / "out"))
    copy_out(fd, "/kept/file", str(tmp_path / "archived"), archive=True)
    status = os.stat(tmp_path / "out")
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o755)
    status = os.stat(tmp_path / "archived")
    assert (status.st_uid, status.st_mode & 0o7777) == (1000, 0o4755)


def test_swapping_a_directory_for_a_link_gains_nothing(
    root: tuple[int, Path], tmp_path: Path
) -> None:
    """CVE-2018-15664: while files are copied both ways, the path flips between a directory and a
    link to the host. Nothing is ever written to, or read from, the host's directory."""
    fd, path = root
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("host")
    (path / "real/sub").mkdir(parents=True)
    (path / "real/sub/secret").write_text("container")
    source = tmp_path / "payload"
    source.mkdir()
    (source / "planted").write_text("x")
    stop = threading.Event()

    os.symlink(outside, path / "real/link")
    libc = ctypes.CDLL(None)
    names = (os.fsencode(path / "real/sub"), os.fsencode(path / "real/link"))

    def swap() -> None:
        while not stop.is_set():
            assert libc.renameat2(-100, names[0], -100, names[1], 2) == 0  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    copied = 0
    try:
        for number in range(400):
            target = tmp_path / f"out{number}"
            try:
                copy_out(fd, "/real/sub/secret", str(target))
                assert target.read_text() == "container"
                copy_in(fd, f"{source}/.", "/real/sub/")
                copied += 1
            except (PycontainError, OSError):
                pass  # it was a link at that moment
    finally:
        stop.set()
        thread.join()
    assert os.listdir(outside) == ["secret"]
    assert copied > 0
