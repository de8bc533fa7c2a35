"""The image that is part of the package: `pycontain/hello`, one static program, no network."""

from __future__ import annotations

import functools
import hashlib

from pycontain import _native
from pycontain.oci import ImageConfig

from .platforms import host

NAME = "pycontain/hello:latest"
LABEL = "dev.pycontain.program"
_DIRECTORIES = (("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777))
_PASSWD = b"root:x:0:0:root:/:/hello\n"


@functools.cache
def program() -> tuple[bytes, str]:
    """Returns the program and its hash, which tells whether the stored image is of this version."""
    data = _native.binary_path("hello").read_bytes()
    return data, hashlib.sha256(data).hexdigest()


def config(program_hash: str) -> ImageConfig:
    """Returns what the image asks for."""
    return ImageConfig(
        entrypoint=("/hello",),
        env=("PATH=/",),
        working_dir="/",
        labels=((LABEL, program_hash),),
        platform=host(),
    )


def layer(data: bytes) -> bytes:
    """Returns the only layer, a tar that is the same bytes for the same program."""
    parts = [_header("./", b"5", 0o755, 0)]
    parts += [_header(f"{name}/", b"5", mode, 0) for name, mode in _DIRECTORIES]
    for name, mode, content in (("etc/passwd", 0o644, _PASSWD), ("hello", 0o755, data)):
        parts += [_header(name, b"0", mode, len(content)), content, bytes(-len(content) % 512)]
    return b"".join((*parts, bytes(1024)))


def _header(name: str, flag: bytes, mode: int, size_bytes: int) -> bytes:
    """Returns a ustar header of uid, gid and mtime 0 (POSIX.1-2017 pax(1), "ustar")."""
    fields = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.encode().ljust(100, b"\0"),
        mode,
        0,
        0,
        size_bytes,
        0,
    )
    rest = (flag + bytes(100) + b"ustar\x0000").ljust(512 - 156, b"\0")
    total = sum(fields) + sum(rest) + 8 * 0x20
    return fields + b"%06o\0 " % total + rest
