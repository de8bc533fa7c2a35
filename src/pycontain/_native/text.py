"""How a system call is written in an error: as it was made, with names for its numbers.

    openat2(7</rootfs>, "etc/passwd", O_RDONLY|O_CLOEXEC, RESOLVE_IN_ROOT)

Rendering happens only when a call has failed, so nothing here needs to be fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pycontain.errors import InvalidInput

AT_FDCWD = -100

PathLike = str | bytes | os.PathLike[str]


def path_bytes(path: PathLike) -> bytes:
    """Return the path as the kernel takes it, without the NUL; C would cut it at an inner one."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise InvalidInput(f"NUL in path {raw!r}")
    return raw


def fd_text(fd: int) -> str:
    """Return `7</what/it/is>`, as far as /proc knows."""
    if fd == AT_FDCWD:
        return "AT_FDCWD"
    try:
        return f"{fd}<{os.readlink(f'/proc/self/fd/{fd}')}>"
    except OSError:
        return str(fd)


def string_text(value: PathLike) -> str:
    """Return a path or other string in double quotes, escaped as in C."""
    text = os.fsencode(value).decode("utf-8", "backslashreplace")
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text) + '"'


def flags_text(value: int, names: Mapping[str, int], zero: str = "0") -> str:
    """Return `A|B|0x8` for the named bits and what is left of them."""
    parts = []
    for name, bits in names.items():
        if bits and value & bits == bits:
            parts.append(name)
            value &= ~bits
    if value:
        parts.append(hex(value))
    return "|".join(parts) or zero


def open_flags_text(flags: int) -> str:
    """Return the flags of open(2); the access mode is always named."""
    names = {
        n: getattr(os, n)
        for n in (
            "O_TMPFILE",
            "O_PATH",
            "O_DIRECTORY",
            "O_NOFOLLOW",
            "O_CREAT",
            "O_EXCL",
            "O_TRUNC",
            "O_APPEND",
            "O_NONBLOCK",
            "O_NOCTTY",
            "O_CLOEXEC",
        )
    }
    mode = {os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}.get(flags & os.O_ACCMODE, "O_RDONLY")
    rest = flags & ~os.O_ACCMODE
    return mode if not rest else f"{mode}|{flags_text(rest, names)}"
