"""OCI layouts and `docker save` archives as named members, whether directory or tar.

Only members are ever opened by name; what is inside is checked by digest later. A tar is indexed
in one pass over its headers, by the same strict parser that unpacks layers; a compressed one is
first inflated into a temporary file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pycontain import _native
from pycontain.errors import (
    ImageNotFound,
    InvalidInput,
    KernelError,
    MalformedManifest,
    SizeMismatch,
    UnsafeLayer,
)
from pycontain.values import mutable

from . import tar
from .inflate import Inflater, Limits, compression_of
from .tree import normalise

MAX_MEMBERS = 100_000
MAX_LINKS = 8
HEADER_READ_BYTES = 64 << 10


@mutable
class Member:
    """A run of bytes in an open file: `read(n)` continues where the last one ended."""

    fd: int
    offset: int
    size_bytes: int
    _read_bytes: int = 0

    def read(self, count: int) -> bytes:
        """Returns up to `count` bytes, b"" at the end."""
        count = min(count, self.size_bytes - self._read_bytes)
        if count <= 0:
            return b""
        data = os.pread(self.fd, count, self.offset + self._read_bytes)
        self._read_bytes += len(data)
        return data


class DirectorySource:
    """A layout in a directory. Links are followed as long as they stay inside."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise _not_readable(e, path) from e
        self._files: list[int] = []

    def close(self) -> None:
        """All members are closed."""
        for fd in (*self._files, self._fd):
            os.close(fd)

    def open(self, name: str) -> Member | None:
        """Returns a member, or None if there is none of this name."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        resolve = _native.RESOLVE_BENEATH | _native.RESOLVE_NO_MAGICLINKS
        try:
            fd = _native.openat2(self._fd, name, flags, resolve=resolve)
        except KernelError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        self._files.append(fd)
        info = os.fstat(fd)
        if info.st_mode & 0o170000 != 0o100000:
            raise MalformedManifest(f"{self.path}/{name}: not a regular file")
        return Member(fd, 0, info.st_size)


class TarSource:
    """A layout in a tar. `spool` returns a file for what a compressed archive inflates to."""

    def __init__(self, path: str, spool: Callable[[], int]) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags)
        except OSError as e:
            raise _not_readable(e, path) from e
        try:
            if os.fstat(self._fd).st_mode & 0o170000 != 0o100000:
                raise InvalidInput(f"{path} is not a regular file")
            if compression_of(os.pread(self._fd, 16, 0)):
                self._inflate(spool())
            self._members: dict[str, tar.Entry] = {}
            self._index()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """The archive is closed, its members too."""
        os.close(self._fd)

    def open(self, name: str) -> Member | None:
        """Returns a member, or None if there is none of this name; links inside are followed."""
        for _ in range(MAX_LINKS):
            entry = self._members.get(name)
            if entry is None:
                return None
            if entry.type == tar.FILE:
                return Member(self._fd, entry.data_offset, entry.size_bytes)
            if entry.type == tar.HARDLINK:
                name = normalise(entry.link_name).decode("utf-8", "surrogateescape")
            else:
                # Old `docker save` links a repeated layer: ../OTHER/layer.tar
                target = entry.link_name.decode("utf-8", "surrogateescape")
                name = os.path.normpath(os.path.join(os.path.dirname(name), target))
        raise MalformedManifest(f"{self.path}: {name!r} is a loop of links")

    def _inflate(self, spool_fd: int) -> None:
        try:
            source = Member(self._fd, 0, os.fstat(self._fd).st_size)
            inflater = Inflater(source.read, limits=Limits())
            while chunk := inflater.read():
                write_all(spool_fd, chunk)
        except BaseException:
            os.close(spool_fd)
            raise
        os.close(self._fd)
        self._fd = spool_fd

    def _index(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        reader = tar.TarReader(
            lambda: os.read(self._fd, HEADER_READ_BYTES),
            lambda offset: void(os.lseek(self._fd, offset, os.SEEK_SET)),
        )
        end = os.fstat(self._fd).st_size
        while (entry := reader.next()) is not None:
            if entry.data_offset + entry.stored_bytes > end:
                raise SizeMismatch(f"{self.path}: the archive is cut short")
            if entry.type == tar.DIRECTORY:
                continue
            if entry.type not in (tar.FILE, tar.HARDLINK, tar.SYMLINK) or entry.extents is not None:
                raise UnsafeLayer("not a plain file", entry=entry.name.decode("utf-8", "replace"))
            name = normalise(entry.name).decode("utf-8", "surrogateescape")
            if name in self._members or len(self._members) >= MAX_MEMBERS:
                raise UnsafeLayer("a member twice, or too many of them", entry=name)
            self._members[name] = entry


Source = DirectorySource | TarSource


def read_document(source: Source, name: str, limit_bytes: int) -> bytes | None:
    """Returns a small member whole, or None if there is none.

    Raises:
        SizeMismatch: it is larger than `limit_bytes`.
    """
    member = source.open(name)
    if member is None:
        return None
    if member.size_bytes > limit_bytes:
        raise SizeMismatch(f"{source.path}: {name} has {member.size_bytes} bytes")
    parts: list[bytes] = []
    while data := member.read(limit_bytes):
        parts.append(data)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """All of `data` was written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def void(_: object) -> None:
    """Drops a result."""


def _not_readable(error: OSError, path: str) -> Exception:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageNotFound(f"{path} does not exist or is not what the transport needs")
    return KernelError(error.errno or 0, f'open("{path}")')
