"""Pax extended header records: their strict grammar, and what they change in an entry.

Source: POSIX.1-2017 pax(1), "pax Extended Header"; GNU tar manual, "Sparse Formats".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycontain.errors import UnsafeLayer

if TYPE_CHECKING:
    from .tar import Entry

MAX_SIZE_BYTES = 2**63 - 1
MAX_ID = 2**32 - 2
MAX_XATTR_BYTES = 64 << 10
_XATTR = b"SCHILY.xattr."
_SPARSE_OFFSET, _SPARSE_LENGTH = b"GNU.sparse.offset", b"GNU.sparse.numbytes"


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Returns the records of one extended header; those with an empty value are left out.

    The repeated keys of sparse format 0.0 come back as one GNU.sparse.map, as in 0.1.

    Raises:
        UnsafeLayer: a malformed record, a key twice, or NUL in a name.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        length = decimal(data[position:space], "pax record length") if space > 0 else 0
        end = position + length
        if length < 5 or end > len(data) or data[end - 1] != 0x0A:
            raise UnsafeLayer("malformed pax record")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise UnsafeLayer("malformed pax record")
        position = end
        if key in (_SPARSE_OFFSET, _SPARSE_LENGTH):
            if (len(sparse) % 2 == 0) != (key == _SPARSE_OFFSET):
                raise UnsafeLayer("sparse offsets and lengths do not alternate")
            sparse.append(value)
            continue
        if key in records:
            raise UnsafeLayer(f"pax record {key!r} twice")
        if b"\0" in value and not key.startswith((_XATTR, b"LIBARCHIVE.")):
            raise UnsafeLayer(f"NUL in pax record {key!r}")
        records[key] = value
    if sparse:
        if b"GNU.sparse.map" in records:
            raise UnsafeLayer("two sparse maps")
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return {k: v for k, v in records.items() if v or k.startswith(_XATTR)}


def apply(entry: Entry, records: dict[bytes, bytes]) -> None:
    """`entry` has the sizes, ids, time and extended attributes that `records` give it."""
    xattr_bytes = 0
    for key, value in records.items():
        if key == b"size":
            entry.size_bytes = entry.stored_bytes = decimal(value, "pax size")
        elif key in (b"uid", b"gid"):
            number = decimal(value, "pax id")
            if number > MAX_ID:
                raise UnsafeLayer(f"pax {key.decode()} {number} is out of range")
            setattr(entry, key.decode(), number)
        elif key == b"mtime":
            entry.mtime_ns = _nanoseconds(value)
        elif key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            xattr_bytes += len(name) + len(value)
            if not name or xattr_bytes > MAX_XATTR_BYTES:
                raise UnsafeLayer("extended attributes exceed 64 KiB, or one has no name")
            entry.xattrs[name] = value
    if b"GNU.sparse.name" in records:
        entry.name = records[b"GNU.sparse.name"]


def apply_sparse_map(entry: Entry, records: dict[bytes, bytes]) -> None:
    """`entry` has the extents of sparse format 0.0 or 0.1, if `records` hold any."""
    if b"GNU.sparse.map" not in records and b"GNU.sparse.size" not in records:
        return
    text = records.get(b"GNU.sparse.map", b"")  # absent: nothing but a hole
    fields = text.split(b",") if text else []
    if len(fields) % 2:
        raise UnsafeLayer("sparse map with an odd number of fields")
    numbers = [decimal(field, "sparse map") for field in fields]
    entry.size_bytes = decimal(records.get(b"GNU.sparse.size", b""), "sparse size")
    entry.extents = list(zip(numbers[::2], numbers[1::2], strict=True))


def decimal(text: bytes, what: str) -> int:
    """Returns a non-negative decimal of at most 63 bits."""
    # isdigit() of bytes is ASCII only; int() alone would take signs, blanks and underscores.
    if not text.isdigit() or len(text) > 19 or int(text) > MAX_SIZE_BYTES:
        raise UnsafeLayer(f"{what} is not a number in range: {text[:32]!r}")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    negative = text.startswith(b"-")
    whole, _, fraction = text[negative:].partition(b".")
    if fraction and not fraction.isdigit():
        raise UnsafeLayer(f"pax mtime {text[:32]!r}")
    total = decimal(whole, "pax mtime") * 1_000_000_000 + int((fraction[:9] or b"0").ljust(9, b"0"))
    return -total if negative else total
