"""Opening paths beneath a directory that somebody hostile may own: openat2(2).

A rootfs can hold symbolic links to anywhere and change while we look. openat2 resolves the whole
path in the kernel, inside the given directory (CVE-2019-14271, CVE-2021-30465 and their kin came
from resolving such paths in steps). Where a kernel or a seccomp filter lacks openat2, `_walk`
resolves component by component on O_PATH descriptors and verifies where it arrived.
"""

from __future__ import annotations

import os
from errno import EAGAIN

from pycontain._native.extension import lib
from pycontain._native.text import (
    AT_FDCWD,
    PathLike,
    fd_text,
    flags_text,
    open_flags_text,
    path_bytes,
    string_text,
)
from pycontain.errors import KernelError

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


def openat2(dir_fd: int, path: PathLike, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` beneath `dir_fd` and return an O_CLOEXEC fd that the caller closes.

    Args:
        dir_fd: a directory, or AT_FDCWD.
        flags: O_*; O_CLOEXEC is always added.
        mode: of a file made by O_CREAT; must be 0 otherwise.
        resolve: RESOLVE_*.

    Raises:
        KernelError: EXDEV, ELOOP when the path leaves what `resolve` allows.

    Source: openat2(2).
    """
    raw = path_bytes(path)
    flags |= os.O_CLOEXEC
    result = -EAGAIN
    for _ in range(_MAX_RETRIES):
        result = lib.pyc_openat2(dir_fd, raw, flags, mode, resolve)
        if result != -EAGAIN:
            break
    if result < 0:
        raise KernelError(-result, _call_text(dir_fd, raw, flags, mode, resolve))
    return result


def _call_text(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> str:
    parts = [fd_text(dir_fd), string_text(path), open_flags_text(flags)]
    if mode:
        parts.append(f"{mode:#o}")
    parts.append(flags_text(resolve, _RESOLVE_NAMES))
    return f"openat2({', '.join(parts)})"
