"""Exit codes that outlive every monitor, on Linux 6.15 and later."""

from __future__ import annotations

import errno
import fcntl
import os

from pycontain import _native
from pycontain.errors import KernelError

__all__ = ["exit_from_pin", "pin_pidfd", "unpin_pidfd"]

# linux/pidfd.h (Linux 6.15): _IOWR(0xFF, 11, struct pidfd_info), of 64 bytes in its first version
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8


def pin_pidfd(pidfd: int, path: str) -> bool:
    """The kernel remembers how this process ends for as long as `path` exists.

    The pidfd is bind-mounted on the file `path`, so its exit code can be had even if the monitor's
    keeper and worker were both killed before it ended. `unpin_pidfd` gives it up.

    Returns:
        False where the kernel can't (before Linux 6.15, or without CAP_SYS_ADMIN).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        flags = _native.OPEN_TREE_CLONE | _native.OPEN_TREE_CLOEXEC | _native.AT_EMPTY_PATH
        tree = _native.open_tree(pidfd, "", flags)
    except OSError:
        return False
    try:
        _native.move_mount(tree, "", _native.AT_FDCWD, path, _native.MOVE_MOUNT_F_EMPTY_PATH)
    except KernelError:
        return False
    finally:
        os.close(tree)
    return True


def unpin_pidfd(path: str) -> None:
    """Neither mount nor file `path` exists. Idempotent."""
    for _ in range(2):  # the mount, then the file beneath it
        try:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise KernelError(error.errno or errno.EIO, f"unlink({path})") from error
            _native.umount2(path, _native.MNT_DETACH | _native.UMOUNT_NOFOLLOW)


def exit_from_pin(path: str) -> int | None:
    """Return the wait status (as of waitpid) of a pinned process that has been reaped, else None.

    Source: include/uapi/linux/pidfd.h, PIDFD_GET_INFO and PIDFD_INFO_EXIT (Linux 6.15).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        info = bytearray(64)
        info[0] = _PIDFD_INFO_EXIT
        fcntl.ioctl(fd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    finally:
        os.close(fd)
    if not info[0] & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[60:64], "little")
