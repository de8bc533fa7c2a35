"""Whether a process that was written down still exists."""

from __future__ import annotations

import errno
import os

__all__ = ["is_alive"]


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether the process exists: this pid, started at this tick (0: not known), and no zombie.

    A pid alone is not enough, it may have been given to another process since.
    Source: proc(5), /proc/PID/stat, field 22.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ESRCH)
    try:
        data = os.read(fd, 4096)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    # The name, field 2, may hold anything, also ")": fields count from the last one.
    fields = data.rpartition(b")")[2].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return False
    return start_ticks in (0, int(fields[19]))
