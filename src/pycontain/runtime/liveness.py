"""Whether a process that was written down still exists."""

from __future__ import annotations

import errno
import os

__all__ = ["is_alive", "own_identity"]


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether the process exists: this pid, started at this tick (0: not known), and no zombie.

    A pid alone is not enough, it may have been given to another process since.
    Source: proc(5), /proc/PID/stat, field 22.
    """
    try:
        fields = _stat_fields(pid)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ESRCH)
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return False
    return start_ticks in (0, int(fields[19]))


def own_identity() -> tuple[int, int]:
    """This program's pid and start tick, for `is_alive`."""
    global _own
    if _own[0] != os.getpid():  # first asked, or forked since
        _own = (os.getpid(), int(_stat_fields(os.getpid())[19]))
    return _own


_own = (0, 0)


def _stat_fields(pid: int) -> list[bytes]:
    """/proc/PID/stat from field 3 on. Field 2, the name, may hold anything, also ")"."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)
