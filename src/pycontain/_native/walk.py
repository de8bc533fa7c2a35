"""What openat2(2) does, component by component, for hosts that forbid it.

Each component is opened O_PATH|O_NOFOLLOW from its parent's descriptor; a symbolic link is read
and its text walked in turn. ".." steps back to the descriptor we came from and is never looked up,
so a directory that is moved meanwhile can't lead out. A magic link (/proc/PID/root, fd/N) is
refused always, whatever `resolve` says: it has no text that could be walked. At the end the kernel
is asked where we are; if that is not beneath the root, the walk starts over.

Source: openat2(2); path_resolution(7); symlink(7).
"""

from __future__ import annotations

import os
import stat
from errno import EAGAIN, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV

from pycontain._native.extension import lib
from pycontain._native.paths import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
)

_KNOWN = (
    RESOLVE_BENEATH
    | RESOLVE_IN_ROOT
    | RESOLVE_NO_MAGICLINKS
    | RESOLVE_NO_SYMLINKS
    | RESOLVE_NO_XDEV
)
_SCOPED = RESOLVE_BENEATH | RESOLVE_IN_ROOT
_MAX_LINKS = 40  # MAXSYMLINKS, path_resolution(7)
_PATH_MAX = 4096
_PROC_SUPER_MAGIC = 0x9FA0
_PROC_ROOT_INODE = 1
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Return an O_CLOEXEC fd of the path, or -errno as openat2 would."""
    makes = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
    if resolve & ~_KNOWN or resolve & _SCOPED == _SCOPED or (mode and not makes):
        return -EINVAL
    if not path:
        return -ENOENT
    if len(path) >= _PATH_MAX:
        return -ENAMETOOLONG
    if flags & os.O_CREAT and path.endswith(b"/"):
        return -EISDIR
    walk = None
    try:
        walk = _Walk(dir_fd, flags | os.O_CLOEXEC, mode, resolve)
        return walk.run(path)
    except OSError as error:
        return -(error.errno or EINVAL)
    finally:
        if walk is not None:
            walk.close()


def _error(errno_: int) -> OSError:
    return OSError(errno_, os.strerror(errno_))


def _components(path: bytes) -> list[bytes]:
    """Return the components, the last one first; a trailing slash counts as "."."""
    parts = [part for part in path.split(b"/") if part]
    if path.endswith(b"/"):
        parts.append(b".")
    return parts[::-1]


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise _error(EXDEV)


class _Walk:
    """One resolution. The mutable state is `stack`, the O_PATH fds from the start to where we are,
    and `links`, the number of symbolic links followed."""

    __slots__ = ("flags", "links", "mode", "mount_id", "resolve", "stack")

    def __init__(self, dir_fd: int, flags: int, mode: int, resolve: int) -> None:
        self.flags, self.mode, self.resolve = flags, mode, resolve
        self.links = 0
        self.stack = [os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)]
        self.mount_id = _mount_id(self.stack[0]) if resolve & RESOLVE_NO_XDEV else -1

    def close(self) -> None:
        for fd in self.stack:
            os.close(fd)

    def run(self, path: bytes) -> int:
        self._jump_if_absolute(path)
        pending = _components(path)
        while True:
            name = pending.pop()
            if name in (b".", b".."):
                if name == b"..":
                    self._up()
                if not pending:
                    return self._finish(b".")
                continue
            fd = self._step(name, last=not pending)
            if fd < 0:
                return self._finish(name)
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            if kind == stat.S_IFLNK:
                try:
                    target = self._read_link(fd)
                finally:
                    os.close(fd)
                self._jump_if_absolute(target)
                pending += _components(target)
            elif pending:
                self.stack.append(fd)
                if kind != stat.S_IFDIR:
                    raise _error(ENOTDIR)
                self._check_mount(fd)
            else:
                os.close(fd)
                return self._finish(name)

    def _step(self, name: bytes, *, last: bool) -> int:
        """Return an O_PATH fd of the component, or -1 if opening it for real is all that is left:
        it is the last one and does not exist yet, or is a link that is not to be followed."""
        try:
            fd = os.open(name, _STEP, dir_fd=self.stack[-1])
        except FileNotFoundError:
            if last and self.flags & os.O_CREAT:
                return -1
            raise
        exclusive = os.O_CREAT | os.O_EXCL
        stays = self.flags & os.O_NOFOLLOW or self.flags & exclusive == exclusive
        if last and stays and stat.S_ISLNK(os.fstat(fd).st_mode):
            os.close(fd)
            return -1
        return fd

    def _read_link(self, fd: int) -> bytes:
        self.links += 1
        if self.resolve & RESOLVE_NO_SYMLINKS or self.links > _MAX_LINKS:
            raise _error(ELOOP)
        in_proc = lib.pyc_fs_magic(fd) == _PROC_SUPER_MAGIC
        # "self", "mounts" and the like in procfs' own root are text; deeper ones are magic.
        if in_proc and os.fstat(self.stack[-1]).st_ino != _PROC_ROOT_INODE:
            raise _error(ELOOP)
        target = os.readlink(b"", dir_fd=fd)
        if not target:
            raise _error(ENOENT)
        return target

    def _jump_if_absolute(self, path: bytes) -> None:
        if not path.startswith(b"/"):
            return
        if self.resolve & RESOLVE_BENEATH:
            raise _error(EXDEV)
        if self.resolve & RESOLVE_IN_ROOT:
            self._shorten(1)
            return
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._shorten(0)
        self.stack.append(fd)
        if self.links:
            self._check_mount(fd)
        elif self.resolve & RESOLVE_NO_XDEV:
            self.mount_id = _mount_id(fd)

    def _up(self) -> None:
        if len(self.stack) > 1:
            self._shorten(len(self.stack) - 1)
        elif self.resolve & RESOLVE_BENEATH:
            raise _error(EXDEV)
        elif not self.resolve & RESOLVE_IN_ROOT:
            self.stack.append(os.open("..", _STEP, dir_fd=self.stack[-1]))
            os.close(self.stack.pop(0))
        self._check_mount(self.stack[-1])

    def _shorten(self, length: int) -> None:
        while len(self.stack) > length:
            os.close(self.stack.pop())

    def _check_mount(self, fd: int) -> None:
        if self.resolve & RESOLVE_NO_XDEV and _mount_id(fd) != self.mount_id:
            raise _error(EXDEV)

    def _finish(self, name: bytes) -> int:
        """Open the last component, which is not a link (or not to be followed), and verify."""
        flags = self.flags | os.O_NOFOLLOW
        if flags & os.O_CREAT and name == b".":
            raise _error(EISDIR)
        fd = os.open(name, flags, self.mode, dir_fd=self.stack[-1])
        try:
            self._check_mount(fd)
            self._verify(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _verify(self, fd: int) -> None:
        """The kernel's own name of where we arrived begins with that of where we began."""
        if not self.resolve & _SCOPED:
            return
        root = os.readlink(f"/proc/self/fd/{self.stack[0]}").rstrip("/") + "/"
        if not (os.readlink(f"/proc/self/fd/{fd}") + "/").startswith(root):
            raise _error(EAGAIN)
