"""Starting a monitor: a sealed copy of its program, spawned without forking the interpreter."""

from __future__ import annotations

import errno
import fcntl
import os
import select

from pycontain import _native
from pycontain.errors import InternalError, KernelError

__all__ = ["START_TIMEOUT_SEC", "start_monitor"]

START_TIMEOUT_SEC = 10.0
_READY_FD = 3


def start_monitor(state_root: str, idle_sec: int, program: str | None = None) -> bool:
    """Start a monitor and return True once it listens; False if another one was faster."""
    try:
        os.makedirs(state_root, 0o700, exist_ok=True)
    except OSError as error:
        call = f"mkdir({state_root})"
        raise KernelError(error.errno or errno.EIO, call) from error
    image = _sealed_image(program)
    try:
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                f"/proc/self/fd/{image}",
                ["pycontain-monitor", state_root, str(idle_sec)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, ready_write, _READY_FD)],
            )
        finally:
            os.close(ready_write)
    finally:
        os.close(image)
    try:
        poller = select.poll()
        poller.register(ready_read, select.POLLIN)
        poller.poll(int(START_TIMEOUT_SEC * 1000))
        os.set_blocking(ready_read, False)
        ready = _read_ready(ready_read)
    finally:
        os.close(ready_read)
    code = _reap(pid)
    if code not in (0, None):
        raise InternalError(
            f"the monitor did not start (exit code {code})",
            hint=f"is {state_root} a directory of this user, not on a read-only disk?",
        )
    return ready


def _sealed_image(program: str | None) -> int:
    """Return an fd of a sealed memfd with the monitor's program; 10 or higher."""
    with open(program or _native.binary_path("monitor"), "rb") as file:
        image = _native.memfd("pycontain-monitor", file.read(), seal=True, executable=True)
    try:
        # Out of the way of the readiness pipe, which becomes descriptor 3 before the exec.
        return fcntl.fcntl(image, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(image)


def _read_ready(fd: int) -> bool:
    try:
        return os.read(fd, 1) != b""
    except BlockingIOError:
        return False


def _reap(pid: int) -> int | None:
    """Return the exit code of our child, which ends at once; None if somebody else reaped it."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:  # the host program has a waitpid(-1) thread, or ignores SIGCHLD
        return None
    return os.waitstatus_to_exitcode(status)
