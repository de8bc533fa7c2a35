"""Opening paths beneath a directory that somebody hostile may own: openat2(2).

A rootfs can hold symbolic links to anywhere and change while we look. openat2 resolves the whole
path in the kernel, inside the given directory (CVE-2019-14271, CVE-2021-30465 and their kin came
from resolving such paths in steps). Where a kernel or a seccomp filter lacks openat2, `walk.py`
resolves component by component with the same results.
"""

from __future__ import annotations

import os
from errno import EAGAIN, ENOSYS, EPERM

from pycontain._native.extension import lib
from pycontain._native.text import (
    PathLike,
    fd_text,
    flags_text,
    open_flags_text,
    path_bytes,
    string_text,
)
from pycontain.errors import KernelError

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "openat2",
]

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_RESOLVE_NAMES = {
    "RESOLVE_NO_XDEV": RESOLVE_NO_XDEV,
    "RESOLVE_NO_MAGICLINKS": RESOLVE_NO_MAGICLINKS,
    "RESOLVE_NO_SYMLINKS": RESOLVE_NO_SYMLINKS,
    "RESOLVE_BENEATH": RESOLVE_BENEATH,
    "RESOLVE_IN_ROOT": RESOLVE_IN_ROOT,
}
_MAX_RETRIES = 128  # a rename or mount anywhere on the host during "..": EAGAIN, openat2(2)

# Invariant: set once, by the first ENOSYS, and never reset; tests set it to walk everywhere.
_missing = False


def openat2(dir_fd: int, path: PathLike, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` beneath `dir_fd` and return an O_CLOEXEC fd that the caller closes.

    Args:
        dir_fd: a directory, or AT_FDCWD; stays the caller's.
        flags: O_*; O_CLOEXEC is always added.
        mode: of a file made by O_CREAT or O_TMPFILE; must be 0 otherwise.
        resolve: RESOLVE_*.

    Raises:
        KernelError: EXDEV or ELOOP when the path would leave what `resolve` allows.

    Source: openat2(2).
    """
    raw = path_bytes(path)
    flags |= os.O_CLOEXEC
    result = -EAGAIN
    for _ in range(_MAX_RETRIES):
        result = _open_once(dir_fd, raw, flags, mode, resolve)
        if result != -EAGAIN:
            break
    if result < 0:
        raise KernelError(-result, _call_text(dir_fd, raw, flags, mode, resolve))
    return result


def _open_once(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Return an fd or -errno, from the kernel if it knows the call."""
    global _missing
    if not _missing:
        result = lib.pyc_openat2(dir_fd, path, flags, mode, resolve)
        # EPERM may be a seccomp filter's word for "no such call", or true: walking tells.
        if result not in (-ENOSYS, -EPERM):
            return result
        _missing = result == -ENOSYS
    from pycontain._native import walk

    return walk.open_beneath(dir_fd, path, flags, mode, resolve)


def _call_text(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> str:
    parts = [fd_text(dir_fd), string_text(path), open_flags_text(flags)]
    if mode:
        parts.append(f"{mode:#o}")
    parts.append(flags_text(resolve, _RESOLVE_NAMES))
    return f"openat2({', '.join(parts)})"
