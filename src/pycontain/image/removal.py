"""Deletes directory trees whose content is hostile: by descriptor, following nothing.

A tree that a container made can be deeper than PATH_MAX and than the descriptor limit, can hold
directories that nobody may read (overlayfs's work/work has mode 000) and immutable files. Deep
directories are moved up to the top of the tree, so that depth costs neither stack nor descriptors.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from pycontain import _native
from pycontain.errors import KernelError

DESCEND_MAX = 32
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE = _native.RESOLVE_BENEATH | _native.RESOLVE_NO_SYMLINKS | _native.RESOLVE_NO_XDEV
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_IMMUTABLE_FL, _FS_APPEND_FL = 0x10, 0x20


def remove_path(path: str) -> None:
    """`path` and everything below it are gone; no error if it did not exist.

    Raises:
        KernelError: something could not be removed, e.g. EXDEV or EBUSY for a mount inside.
    """
    parent, name = os.path.split(os.path.abspath(path))
    try:
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(parent_fd, os.fsencode(name))
    finally:
        os.close(parent_fd)


def remove_tree(parent_fd: int, name: bytes) -> None:
    """`name` in `parent_fd` and everything below it are gone; no error if it did not exist."""
    try:
        os.unlink(name, dir_fd=parent_fd)
        return
    except FileNotFoundError:
        return
    except OSError as e:
        if e.errno not in (errno.EISDIR, errno.EPERM):
            raise _error(e, "unlinkat", name) from e
    top_fd = _open_directory(parent_fd, name)
    if top_fd < 0:
        _unlink(parent_fd, name)
        return
    try:
        while _empty(top_fd, top_fd, 0):
            pass  # what was moved up is still to be emptied
    finally:
        os.close(top_fd)
    _rmdir(parent_fd, name)


def _empty(fd: int, top_fd: int, depth: int) -> bool:
    """Removes what `fd` holds; returns True if a directory was moved up to `top_fd` instead."""
    moved = False
    for name, is_directory in _list(fd):
        if not is_directory:
            _unlink(fd, name)
            continue
        if depth == DESCEND_MAX:
            _move_up(fd, name, top_fd)
            moved = True
            continue
        child_fd = _open_directory(fd, name)
        if child_fd < 0:
            _unlink(fd, name)
            continue
        try:
            moved |= _empty(child_fd, top_fd, depth + 1)
        finally:
            os.close(child_fd)
        _rmdir(fd, name)
    return moved


def _list(fd: int) -> list[tuple[bytes, bool]]:
    with os.scandir(fd) as found:
        return [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in found]


def _move_up(fd: int, name: bytes, top_fd: int) -> None:
    child_fd = _open_directory(fd, name)  # also makes it writable: its ".." changes
    new_name = b".pycontain-%d-%d" % (os.fstat(fd).st_ino, os.fstat(child_fd).st_ino)
    os.close(child_fd)
    try:
        os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=top_fd)
    except OSError as e:
        raise _error(e, "renameat", name) from e


def _open_directory(parent_fd: int, name: bytes) -> int:
    """Returns a descriptor of a directory that can be listed and emptied, -1 if it is none."""
    try:
        fd = _native.openat2(parent_fd, name, _OPEN, resolve=_RESOLVE)
    except KernelError as e:
        if e.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
            return -1
        if e.errno != errno.EACCES:
            raise
        path_fd = _native.openat2(
            parent_fd, name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, resolve=_RESOLVE
        )
        try:
            os.chmod(f"/proc/self/fd/{path_fd}", 0o700)
        finally:
            os.close(path_fd)
        fd = _native.openat2(parent_fd, name, _OPEN, resolve=_RESOLVE)
    if os.geteuid() and os.fstat(fd).st_mode & 0o700 != 0o700:
        os.chmod(fd, 0o700)
    return fd


def _unlink(fd: int, name: bytes) -> None:
    _insist(os.unlink, "unlinkat", fd, name)


def _rmdir(fd: int, name: bytes) -> None:
    _insist(os.rmdir, "rmdir", fd, name)


def _insist(call: Callable[..., None], syscall: str, fd: int, name: bytes) -> None:
    """Remove the entry; once more without the flags that a container may have set on it."""
    try:
        call(name, dir_fd=fd)
    except FileNotFoundError:
        return
    except PermissionError as e:
        _clear_flags(fd)
        _clear_flags_of(fd, name)
        try:
            call(name, dir_fd=fd)
        except OSError:
            raise _error(e, syscall, name) from e
    except OSError as e:
        raise _error(e, syscall, name) from e


def _clear_flags_of(fd: int, name: bytes) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & 0o170000 not in (
            0o100000,
            0o040000,
        ):
            return  # never open a device
        child_fd = _native.openat2(fd, name, flags, resolve=_RESOLVE)
    except OSError:
        return
    try:
        _clear_flags(child_fd)
    finally:
        os.close(child_fd)


def _clear_flags(fd: int) -> None:
    """Clears immutable and append-only, where that is set and may be cleared."""
    try:
        data = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
        flags = struct.unpack_from("i", data)[0]
        if flags & (_FS_IMMUTABLE_FL | _FS_APPEND_FL):
            flags &= ~(_FS_IMMUTABLE_FL | _FS_APPEND_FL)
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", flags))
    except OSError:
        pass  # the caller's own call reports what could not be removed


def _error(cause: OSError, syscall: str, name: bytes) -> KernelError:
    text = name.decode("utf-8", "backslashreplace")
    return KernelError(cause.errno or 0, f'{syscall}("{text}")')
