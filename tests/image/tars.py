"""Tars byte by byte, so that tests can build what no honest tool writes."""

from __future__ import annotations

import io
import os
from pathlib import Path

from pycontain.image.inflate import Inflater
from pycontain.image.tar import Entry, TarReader
from pycontain.image.unpack import Policy, Unpacked, unpack

END = bytes(1024)


def octal(number: int, width: int) -> bytes:
    """A numeric field: octal digits and a NUL."""
    return b"%0*o\0" % (width - 1, number)


def header(
    name: bytes = b"file",
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes | None = None,
    gid: int | None = None,
    mtime: int | bytes = 1_000_000_000,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    tail: bytes | None = None,
    checksum: int | None = None,
) -> bytes:
    """A header block; a field given as bytes is taken as it is. `tail` begins at offset 345."""
    # The tests' own ids, so that those who are not root may give them.
    uid = os.getuid() if uid is None else uid
    gid = os.getgid() if gid is None else gid
    fields = name.ljust(100, b"\0") + octal(mode, 8)
    fields += uid if isinstance(uid, bytes) else octal(uid, 8)
    fields += octal(gid, 8)
    fields += size if isinstance(size, bytes) else octal(size, 12)
    fields += mtime if isinstance(mtime, bytes) else octal(mtime, 12)
    rest = flag + link.ljust(100, b"\0") + magic + bytes(64)
    rest += octal(device[0], 8) + octal(device[1], 8)
    rest += (prefix if tail is None else tail).ljust(167, b"\0")
    total = sum(fields) + sum(rest) + 8 * 32 if checksum is None else checksum
    block = fields + b"%06o\0 " % total + rest
    assert len(block) == 512
    return block


def padded(data: bytes) -> bytes:
    """`data` and zeros up to a block's end."""
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"data", **fields: object) -> bytes:
    """A regular file with its data."""
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    """A directory."""
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    """A symbolic link."""
    return header(name, b"2", link=target, mode=0o777, **fields)  # type: ignore[arg-type]


def hardlink(name: bytes, target: bytes) -> bytes:
    """A hard link."""
    return header(name, b"1", link=target)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record, with its own length in front."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x", raw: bytes | None = None) -> bytes:
    """An extended header for the next entry."""
    data = b"".join(record(k, v) for k, v in records) if raw is None else raw
    return header(b"pax", flag, size=len(data)) + padded(data)


def gnu_long(flag: bytes, text: bytes) -> bytes:
    """A GNU long name (L) or long link target (K)."""
    data = text + b"\0"
    return header(b"././@LongLink", flag, size=len(data), magic=b"ustar  \0") + padded(data)


def reader(data: bytes, chunk_bytes: int = 1 << 20) -> TarReader:
    """A parser over `data`."""
    stream = io.BytesIO(data)
    return TarReader(lambda: stream.read(chunk_bytes))


def listing(data: bytes, chunk_bytes: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """All entries of `data`, each with the bytes stored for it."""
    found = []
    source = reader(data, chunk_bytes)
    while (entry := source.next()) is not None:
        parts = []
        while piece := source.read():
            parts.append(bytes(piece))
        found.append((entry, b"".join(parts)))
    return found


def extract(
    root: Path, *parts: bytes, lower: tuple[Path, ...] = (), policy: Policy | None = None
) -> Unpacked:
    """Unpacks the tar made of `parts` into the new directory `root`, by the whole pipeline."""
    root.mkdir(mode=0o700)
    stream = io.BytesIO(b"".join(parts) + END)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(
            TarReader(Inflater(stream.read).read),
            fd,
            lower=[str(path) for path in lower],
            policy=policy,
        )
    finally:
        os.close(fd)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below `root`: name -> type and mode, size, time, link count, content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_nlink, content,
        )  # fmt: skip
    return found
