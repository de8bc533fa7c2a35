"""Directories that only their owner may enter, held by descriptor."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pycontain.errors import WrongState

__all__ = ["DIR_FLAGS", "check_private", "flocked", "open_dir"]

DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def flocked(dir_fd: int) -> Iterator[None]:
    """A lock on the directory by a descriptor of its own: flock is per open file."""
    fd = os.open(".", DIR_FLAGS, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def open_dir(root_fd: int, name: str) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=root_fd)
    return os.open(name, DIR_FLAGS, dir_fd=root_fd)


def check_private(fd: int, path: str) -> None:
    """Refuse a root that another user could have prepared (CVE-2024-25621's class)."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise WrongState(f"{path} belongs to uid {status.st_uid}, not to us")
    if status.st_mode & 0o077:
        os.fchmod(fd, 0o700)
