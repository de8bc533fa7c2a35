"""A directory tree being filled from hostile names, by file descriptors only.

A parent directory is resolved by the kernel with the tree as its root, links included, so that no
name reaches outside (CVE-2021-29136, CVE-2025-11395); a leaf is only ever named relative to its
parent's descriptor. Names are bytes and normalised: no empty, "." or ".." component.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from pycontain import _native
from pycontain.errors import KernelError, UnsafeLayer
from pycontain.values import field, mutable

from .removal import remove_tree

IN_ROOT = _native.RESOLVE_IN_ROOT | _native.RESOLVE_NO_MAGICLINKS
PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_PATH_BYTES = 4096
MAX_DEPTH = 256
CACHED_FDS = 128
WHITEOUT_DEVICE = os.makedev(0, 0)


@mutable
class Attributes:
    """What a directory gets after everything inside it was made."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def normalise(name: bytes, what: str = "name") -> bytes:
    """Returns `name` relative to the root and without "." components; b"" is the root itself.

    Raises:
        UnsafeLayer: "..", or longer or deeper than the limits.
    """
    if len(name) > MAX_PATH_BYTES:
        raise UnsafeLayer(f"{what} of {len(name)} bytes")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise UnsafeLayer(f'".." in {what}', entry=show(name))
    if len(parts) > MAX_DEPTH:
        raise UnsafeLayer(f"{what} deeper than {MAX_DEPTH} directories")
    return b"/".join(parts)


def show(name: bytes) -> str:
    """Returns `name` for an error text."""
    return name.decode("utf-8", "backslashreplace")[:200]


def opaque_xattr() -> str:
    """Returns what overlayfs reads; the second needs the mount option `userxattr`."""
    return "user.overlay.opaque" if os.geteuid() else "trusted.overlay.opaque"


def is_whiteout(info: os.stat_result) -> bool:
    """True for overlayfs's mark of a deleted name: the character device 0:0."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == WHITEOUT_DEVICE


def set_opaque(parent_fd: int, name: bytes) -> None:
    """The directory `name` hides what lower layers have in it."""
    fd = os.open(name, READ_DIRECTORY, dir_fd=parent_fd)
    try:
        os.setxattr(fd, opaque_xattr(), b"y")
    finally:
        os.close(fd)


def is_opaque(parent_fd: int, name: bytes) -> bool:
    """True if `set_opaque` was called for this directory."""
    fd = os.open(name, READ_DIRECTORY, dir_fd=parent_fd)
    try:
        return os.getxattr(fd, opaque_xattr()) == b"y"
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        os.close(fd)


class Tree:
    """The tree below `root_fd`, which stays the caller's.

    `directories` is what `finish()` applies: attributes by name, so that directories stay writable
    and unshared (0700) while they fill. `lower` are the layers below, the nearest first; implicit
    parents take their attributes from there.
    """

    def __init__(self, root_fd: int, lower: Sequence[str] = ()) -> None:
        self.root_fd = root_fd
        self.directories: dict[bytes, Attributes] = {}
        self.implicit_count = 0
        self.lower = lower
        self._fds: dict[bytes, int] = {}
        self._retired: list[int] = []

    def close(self) -> None:
        """No descriptor of the tree is open; idempotent."""
        self._retired.extend(self._fds.values())
        self._fds.clear()
        self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            os.close(self._retired.pop())

    def next_entry(self) -> None:
        """Descriptors that were handed out may be closed from now on."""
        if self._retired:
            self._close_retired()
        while len(self._fds) > CACHED_FDS:
            os.close(self._fds.pop(next(iter(self._fds))))

    def parent(self, directory: bytes) -> int:
        """Returns an O_PATH descriptor of `directory`, made with its parents if it is missing.

        It belongs to the tree and stays valid until the next `next_entry()`.
        """
        fd = self._fds.pop(directory, -1)
        if fd < 0:
            try:
                fd = self.open(directory, PATH_DIRECTORY)
            except KernelError as e:
                if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                fd = self._make_parents(directory)
        self._fds[directory] = fd
        return fd

    def existing(self, directory: bytes) -> int:
        """Like `parent`, but a missing directory is a KernelError (ENOENT)."""
        if directory not in self._fds:
            os.close(self.open(directory, PATH_DIRECTORY))
        return self.parent(directory)

    def open(self, path: bytes, flags: int) -> int:
        """Returns a new descriptor of `path`, which the caller closes."""
        return _native.openat2(self.root_fd, path or b".", flags, resolve=IN_ROOT)

    def make_directory(
        self, parent_fd: int, name: bytes, path: bytes, *, only_whiteout: bool = False
    ) -> bool:
        """`name` is a directory; returns True if there was nothing. Another file is replaced.

        A directory in the place of a whiteout is opaque: the whiteout's meaning stays. With
        `only_whiteout` any other file, also a link that leads nowhere, is an UnsafeLayer.
        """
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            return True
        except FileExistsError:
            info = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            return False
        if only_whiteout and not is_whiteout(info):
            raise UnsafeLayer("parent is not a directory", entry=show(path))
        self.remove(parent_fd, name, path)
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        if is_whiteout(info):
            set_opaque(parent_fd, name)
        return False

    def remove(self, parent_fd: int, name: bytes, path: bytes) -> None:
        """`name`, which an earlier entry of this layer made, is gone with all below it.

        Cost: as much as making it did, so a layer can't make the unpacker walk (GHSA-rp3h).
        """
        info = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            remove_tree(parent_fd, name)
            self.directories.pop(path, None)
        else:
            os.unlink(name, dir_fd=parent_fd)
        if stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode):
            # Any cached name may have led through it. The caller still uses some: close later.
            self._retired.extend(self._fds.values())
            self._fds.clear()

    def finish(self, chown: bool, default_ids: tuple[int, int]) -> None:
        """Every recorded directory has its owner, mode, attributes and time."""
        for path in sorted(self.directories, key=lambda p: p.count(b"/") + bool(p), reverse=True):
            attributes = self.directories[path]
            try:
                fd = self.open(path, READ_DIRECTORY)
            except KernelError as e:
                # A later entry put something else in its place.
                if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            try:
                if chown and (attributes.uid, attributes.gid) != default_ids:
                    os.chown(fd, attributes.uid, attributes.gid)
                os.chmod(fd, attributes.mode)
                for key, value in attributes.xattrs.items():
                    os.setxattr(fd, key, value)
                os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
            finally:
                os.close(fd)

    def _make_parents(self, directory: bytes) -> int:
        """Makes what is missing of `directory`; returns an O_PATH descriptor of it."""
        path = b""
        in_lower = bool(self.lower)
        fd = self.open(b"", PATH_DIRECTORY)
        try:
            for name in directory.split(b"/"):
                path = path + b"/" + name if path else name
                try:
                    next_fd = self.open(path, PATH_DIRECTORY)
                except KernelError as e:
                    if e.errno not in (errno.ENOENT, errno.ENOTDIR):
                        raise
                    if not self.make_directory(fd, name, path, only_whiteout=True):
                        in_lower = False
                    found = self._lower_attributes(path) if in_lower else None
                    in_lower = found is not None
                    self.directories[path] = found or Attributes()
                    self.implicit_count += 1
                    next_fd = self.open(path, PATH_DIRECTORY)
                os.close(fd)
                fd = next_fd
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lower_attributes(self, path: bytes) -> Attributes | None:
        """Returns what the nearest lower layer that has the directory says of it."""
        for layer in self.lower:
            root_fd = os.open(layer, PATH_DIRECTORY)
            try:
                fd = _native.openat2(
                    root_fd, path, READ_DIRECTORY, resolve=IN_ROOT | _native.RESOLVE_NO_SYMLINKS
                )
            except KernelError as e:
                if e.errno == errno.ENOENT:
                    continue
                return None  # a whiteout, a link or a file hides what is further down
            finally:
                os.close(root_fd)
            try:
                return read_attributes(fd)
            finally:
                os.close(fd)
        return None


def read_attributes(fd: int) -> Attributes:
    """Returns the attributes of the directory `fd`, without those that belong to overlayfs."""
    info = os.fstat(fd)
    xattrs: dict[bytes, bytes] = {}
    for key in os.listxattr(fd):
        if key.startswith(("user.", "system.posix_acl_")) and not key.startswith("user.overlay."):
            xattrs[os.fsencode(key)] = os.getxattr(fd, key)
    mode = stat.S_IMODE(info.st_mode)
    return Attributes(mode, info.st_uid, info.st_gid, info.st_mtime_ns, xattrs)
