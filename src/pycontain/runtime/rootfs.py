"""Files of a container's root, opened so that nothing in it leads outside or does anything.

Everything inside a root is hostile: links, FIFOs, device nodes, and all of it may change while we
look. So paths are resolved by the kernel with the root as "/" and no /proc magic, and are opened
O_PATH first: looking at a FIFO blocks and opening a watchdog's node reboots, O_PATH does neither.
"""

from __future__ import annotations

import errno
import os
import stat

from pycontain import _native
from pycontain.errors import UntrustedContent

__all__ = ["MAX_SMALL_FILE_BYTES", "open_path", "read_small_file", "reopen"]

MAX_SMALL_FILE_BYTES = 1 << 20


def open_path(root_fd: int, path: str, flags: int = 0) -> int:
    """A new O_PATH file descriptor of `path` as a process in the container would find it.

    `flags` may add O_NOFOLLOW or O_DIRECTORY. The caller closes it.

    Raises:
        KernelError: no such file and the like.
    """
    return _native.openat2(
        root_fd,
        path.lstrip("/") or ".",
        os.O_PATH | os.O_CLOEXEC | flags,
        0,
        _native.RESOLVE_IN_ROOT | _native.RESOLVE_NO_MAGICLINKS,
    )


def reopen(path_fd: int, flags: int) -> int:
    """A new file descriptor of the very file that the O_PATH descriptor `path_fd` holds.

    By way of our own /proc, which no container can touch; the name is not resolved again.
    """
    return os.open(f"/proc/self/fd/{path_fd}", flags | os.O_CLOEXEC)


def read_small_file(root_fd: int, path: str) -> bytes | None:
    """The content of a regular file of at most 1 MiB in the root; None if there is none.

    Raises:
        UntrustedContent: not a regular file, or larger (CVE-2024-9676: an image's /etc/passwd that
            is a link to a FIFO or to something endless).
    """
    try:
        path_fd = open_path(root_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(path_fd).st_mode):
            raise UntrustedContent(f"the container's {path} is not a regular file")
        fd = reopen(path_fd, os.O_RDONLY)
    finally:
        os.close(path_fd)
    try:
        chunks = []
        left = MAX_SMALL_FILE_BYTES + 1
        while left > 0 and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)
    if left <= 0:
        raise UntrustedContent(f"the container's {path} is larger than 1 MiB")
    return b"".join(chunks)
