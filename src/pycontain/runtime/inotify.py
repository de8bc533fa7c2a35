"""Waiting for changes of directories, without polling. Source: inotify(7)."""

from __future__ import annotations

import errno
import os
import select

from pycontain import _native
from pycontain.errors import KernelError

__all__ = ["CREATED", "DELETED", "MODIFIED", "Watch"]

MODIFIED = 0x2
CREATED = 0x100 | 0x80  # IN_CREATE | IN_MOVED_TO
DELETED = 0x200 | 0x400  # IN_DELETE | IN_DELETE_SELF
_ONLY_DIRECTORY = 0x01000000


class Watch:
    """Changes in some directories since it was made. It owns one file descriptor until `close`."""

    def __init__(self) -> None:
        self.fd = _native.inotify_init()

    def add(self, path: str, events: int) -> bool:
        """Changes of `events` in the directory `path` count from now on; False if there is none."""
        try:
            _native.inotify_add_watch(self.fd, path, events | _ONLY_DIRECTORY)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def wait(self, stop_fd: int = -1, timeout_usec: int = -1) -> bool:
        """Something has changed since the last call; False if `stop_fd` or the time ended it."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if stop_fd >= 0:
            poll.register(stop_fd, select.POLLIN)
        ready = poll.poll(-1 if timeout_usec < 0 else (timeout_usec + 999) // 1000)
        if not ready or any(fd == stop_fd for fd, _ in ready):
            return False
        try:
            while os.read(self.fd, 65536):  # what changed is seen by looking, not from the events
                pass
        except BlockingIOError:
            pass
        return True

    def close(self) -> None:
        """The watch is over. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
