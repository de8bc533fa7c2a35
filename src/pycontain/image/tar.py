"""The one parser for tar bytes: layers, archives and root file systems all come through it.

Strict where lenient readers disagree with each other (CVE-2025-62518, CVE-2026-53655): a malformed
record is an error, never skipped; a pax record changes only the next entry that is not itself a
record. Names are bytes. Reads ustar, v7, pax, GNU long names, base-256 numbers and GNU sparse
files (old, 0.0, 0.1, 1.0). Does not touch the file system.

Source: POSIX.1-2017 pax(1); GNU tar manual, "Basic Tar Format" and "Sparse Formats".
"""

from __future__ import annotations

from collections.abc import Callable

from pycontain.errors import UnsafeLayer
from pycontain.values import mutable

from . import pax

BLOCK_BYTES = 512
ZERO_BLOCK = bytes(BLOCK_BYTES)
MAX_SIZE_BYTES = 2**63 - 1
MAX_ID = 2**32 - 2  # (uid_t)-1 means "unchanged" to chown
MAX_META_BYTES = 1 << 20
MAX_META_RECORDS = 8  # in a row, before one entry
MAX_EXTENTS = 16384

FILE, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_FILE_FLAGS = (b"0", b"\0", b"7")
_KNOWN_FLAGS = frozenset((*_FILE_FLAGS, HARDLINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO, b"S"))
_POSIX_MAGIC = b"ustar\0"
_GNU_MAGIC = b"ustar  \0"


@mutable
class Entry:
    """One member. `size_bytes` is the file's, `stored_bytes` what the archive holds of it.

    `extents` is None for an ordinary file, else the (offset, length) runs of a sparse one, in
    order. `type` is one of the constants above; `mtime_ns` counts from 1970.
    """

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    stored_bytes: int
    mtime_ns: int
    link_name: bytes
    device: tuple[int, int]
    data_offset: int
    xattrs: dict[bytes, bytes]
    extents: list[tuple[int, int]] | None = None


class TarReader:
    """Reads a tar front to back: `next()` for an entry, then `read()` until its data ends.

    `pull` returns the next chunk of bytes, b"" at the end; `seek`, if given, moves the underlying
    file to an absolute offset, so that skipped data is not read.
    """

    def __init__(
        self, pull: Callable[[], bytes], seek: Callable[[int], None] | None = None
    ) -> None:
        self._pull = pull
        self._seek = seek
        self._chunk = b""
        self._position = 0  # in _chunk
        self._chunk_start = 0  # offset of _chunk in the archive
        self._left_bytes = 0  # data of the current entry not yet read
        self._padding_bytes = 0  # zeros behind that data
        self._finished = False

    def next(self) -> Entry | None:
        """Returns the next entry, or None after the archive's end; unread data is skipped.

        Raises:
            UnsafeLayer: the archive is malformed or cut short.
        """
        if self._left_bytes or self._padding_bytes:
            self._skip(self._left_bytes + self._padding_bytes)
            self._left_bytes = self._padding_bytes = 0
        records: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        seen: set[bytes] = set()
        for _ in range(MAX_META_RECORDS):
            header = self._header()
            if header is None:
                if seen:
                    raise UnsafeLayer("the archive ends after an extended header")
                return None
            flag = header[156:157]
            if flag not in (b"x", b"g", b"L", b"K"):
                return self._entry(header, flag, records, long_name, long_link)
            data = self._meta(header)
            if flag == b"g":
                continue
            if flag in seen:
                raise UnsafeLayer(f"two {flag!r} extended headers before one entry")
            seen.add(flag)
            if flag == b"x":
                records = pax.parse_records(data)
            elif flag == b"L":
                long_name = _long_string(data)
            else:
                long_link = _long_string(data)
        raise UnsafeLayer("too many extended headers before one entry")

    def read(self, limit: int = MAX_SIZE_BYTES) -> memoryview:
        """Returns at most `limit` bytes of the current entry's data, empty when all was read."""
        count = min(limit, self._left_bytes)
        if count and self._position == len(self._chunk):
            self._fill()
        piece = memoryview(self._chunk)[self._position : self._position + count]
        self._position += len(piece)
        self._left_bytes -= len(piece)
        return piece

    def drain(self) -> None:
        """Everything after the end mark was read too, so that digests cover the whole stream."""
        self._chunk = b""
        while self._pull():
            pass

    def _fill(self) -> None:
        chunk = self._pull()
        if not chunk:
            raise UnsafeLayer("the archive is cut short")
        self._chunk_start += len(self._chunk)
        self._chunk = chunk
        self._position = 0

    def _skip(self, count: int) -> None:
        available = len(self._chunk) - self._position
        if count > available and self._seek is not None:
            target = self._chunk_start + self._position + count
            self._seek(target)
            self._chunk, self._position, self._chunk_start = b"", 0, target
            return
        while count > len(self._chunk) - self._position:
            count -= len(self._chunk) - self._position
            self._fill()
        self._position += count

    def _take(self, count: int) -> bytes:
        """Returns exactly `count` bytes; b"" if the stream ended before the first of them."""
        position = self._position
        if len(self._chunk) - position >= count:
            self._position = position + count
            return self._chunk[position : position + count]
        parts = [self._chunk[position:]]
        have = len(parts[0])
        while have < count:
            chunk = self._pull()
            if not chunk:
                if have:
                    raise UnsafeLayer("the archive is cut short")
                return b""
            self._chunk_start += len(self._chunk)
            self._chunk = chunk
            self._position = min(count - have, len(chunk))
            parts.append(chunk[: self._position])
            have += self._position
        return b"".join(parts)

    def _header(self) -> bytes | None:
        """Returns the next header block with its checksum verified, or None at the end."""
        if self._finished:
            return None
        header = self._take(BLOCK_BYTES)
        if not header or header == ZERO_BLOCK:
            if header and self._take(BLOCK_BYTES) not in (b"", ZERO_BLOCK):
                raise UnsafeLayer("data after a lone zero block")
            self._finished = True
            return None
        total = sum(header) - sum(header[148:156]) + 8 * 0x20
        if _octal(header[148:156], "checksum") != total:
            raise UnsafeLayer("header checksum mismatch")
        return header

    def _meta(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size")
        if size > MAX_META_BYTES:
            raise UnsafeLayer(f"extended header of {size} bytes, limit {MAX_META_BYTES}")
        padded = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        data = self._take(padded) if padded else b""
        if len(data) != padded:
            raise UnsafeLayer("the archive is cut short")
        return data[:size]

    def _entry(
        self,
        header: bytes,
        flag: bytes,
        records: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        if flag not in _KNOWN_FLAGS:
            raise UnsafeLayer(f"unknown entry type {flag!r}", entry=_show(header[:100]))
        entry = _basic_entry(header, flag)
        entry.name = _choose(entry.name, long_name, records.get(b"path"))
        entry.link_name = _choose(entry.link_name, long_link, records.get(b"linkpath"))
        if records:
            pax.apply(entry, records)
        if flag == b"\0" and entry.name.endswith(b"/"):
            entry.type = DIRECTORY  # v7 had no flag for directories
        elif flag in _FILE_FLAGS or flag == b"S":
            entry.type = FILE
        if entry.type != FILE and entry.stored_bytes:
            # Readers disagree on whether data follows: refuse to guess.
            raise UnsafeLayer("data where the entry's type has none", entry=_show(entry.name))
        self._left_bytes = entry.stored_bytes
        self._padding_bytes = -entry.stored_bytes % BLOCK_BYTES
        if flag == b"S":
            self._old_gnu_map(header, entry)
        elif b"GNU.sparse.major" in records:
            self._map_in_data(entry, records)
        elif records:
            pax.apply_sparse_map(entry, records)
        if entry.extents is not None:
            _check_extents(entry)
        entry.data_offset = self._chunk_start + self._position
        return entry

    def _old_gnu_map(self, header: bytes, entry: Entry) -> None:
        """Reads the map in a GNU header and in the extension blocks that follow it."""
        if header[257:265] != _GNU_MAGIC:
            raise UnsafeLayer("sparse entry in a header that is not GNU's", entry=_show(entry.name))
        entry.size_bytes = _number(header[483:495], "real size")
        block, start, count, more = header, 386, 4, header[482]
        extents: list[tuple[int, int]] = []
        while True:
            for at in range(start, start + 24 * count, 24):
                if block[at : at + 24].strip(b"\0 "):
                    offset = _number(block[at : at + 12], "sparse offset")
                    extents.append((offset, _number(block[at + 12 : at + 24], "sparse length")))
            if not more:
                break
            if len(extents) > MAX_EXTENTS:
                raise UnsafeLayer("too many sparse extents", entry=_show(entry.name))
            block, start, count = self._take(BLOCK_BYTES), 0, 21
            if not block:
                raise UnsafeLayer("the archive is cut short")
            more = block[504]
            if more and not block[:504].strip(b"\0"):
                raise UnsafeLayer("empty sparse extension", entry=_show(entry.name))
        entry.extents = extents

    def _map_in_data(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        """Reads the decimal lines that a sparse format 1.0 entry's data begins with."""
        version = (records[b"GNU.sparse.major"], records.get(b"GNU.sparse.minor"))
        if version != (b"1", b"0") or entry.type != FILE:
            raise UnsafeLayer(f"sparse format {version}", entry=_show(entry.name))
        entry.size_bytes = pax.decimal(records.get(b"GNU.sparse.realsize", b""), "sparse realsize")
        numbers: list[int] = []
        rest = b""
        wanted = 1
        while len(numbers) < wanted:
            if self._left_bytes < BLOCK_BYTES:
                raise UnsafeLayer("sparse map is cut short", entry=_show(entry.name))
            lines = (rest + self._take(BLOCK_BYTES)).split(b"\n")
            self._left_bytes -= BLOCK_BYTES
            entry.stored_bytes -= BLOCK_BYTES
            rest = lines.pop()
            for line in lines:
                numbers.append(pax.decimal(line, "sparse map"))
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
                    if numbers[0] > MAX_EXTENTS:
                        raise UnsafeLayer("too many sparse extents", entry=_show(entry.name))
                if len(numbers) == wanted:
                    break
        entry.extents = list(zip(numbers[1::2], numbers[2::2], strict=True))


def _basic_entry(header: bytes, flag: bytes) -> Entry:
    name = _string(header[:100])
    magic = header[257:265]
    if magic[:6] == _POSIX_MAGIC and header[345]:
        name = _string(header[345:500]) + b"/" + name
    device = (0, 0)
    if flag in (CHAR, BLOCK):
        device = (_number(header[329:337], "devmajor"), _number(header[337:345], "devminor"))
    size = _number(header[124:136], "size")
    return Entry(
        name=name,
        type=flag,
        mode=_number(header[100:108], "mode") & 0o7777,
        uid=_identity(header[108:116], "uid"),
        gid=_identity(header[116:124], "gid"),
        size_bytes=size,
        stored_bytes=size,
        mtime_ns=_number(header[136:148], "mtime", negative=True) * 1_000_000_000,
        link_name=_string(header[157:257]) if flag in (HARDLINK, SYMLINK) else b"",
        device=device,
        data_offset=0,
        xattrs={},
    )


def _check_extents(entry: Entry) -> None:
    end = 0
    stored = 0
    assert entry.extents is not None
    if entry.type != FILE or len(entry.extents) > MAX_EXTENTS:
        raise UnsafeLayer("too many sparse extents, or not a file", entry=_show(entry.name))
    for offset, length in entry.extents:
        if offset < end or offset + length > entry.size_bytes:
            raise UnsafeLayer("sparse extents overlap or exceed the size", entry=_show(entry.name))
        end = offset + length
        stored += length
    if stored != entry.stored_bytes:
        raise UnsafeLayer("sparse extents do not match the data", entry=_show(entry.name))


def _choose(plain: bytes, gnu: bytes | None, record: bytes | None) -> bytes:
    if gnu is not None and record is not None and gnu != record:
        raise UnsafeLayer("GNU and pax headers give different names", entry=_show(gnu))
    return record if record is not None else gnu if gnu is not None else plain


def _string(field: bytes) -> bytes:
    end = field.find(0)
    return field if end < 0 else field[:end]


def _long_string(data: bytes) -> bytes:
    text = data.rstrip(b"\0")
    if not text or b"\0" in text:
        raise UnsafeLayer("NUL inside a GNU long name")
    return text


def _identity(field: bytes, what: str) -> int:
    number = _number(field, what)
    if number > MAX_ID:
        raise UnsafeLayer(f"{what} {number} is out of range")
    return number


def _number(field: bytes, what: str, *, negative: bool = False) -> int:
    """Returns an octal or base-256 field; only `negative` ones may be below zero."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        if field[0] != 0xFF:  # 0x80 marks a positive number and is not part of it
            value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if value > MAX_SIZE_BYTES or (value < 0 and not negative) or value < -MAX_SIZE_BYTES:
            raise UnsafeLayer(f"{what} is out of range")
        return value
    return _octal(field, what)


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    # int() would also take "_", "+" and "0o".
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise UnsafeLayer(f"{what} is not an octal number: {field!r}")
    return int(digits, 8)


def _show(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "backslashreplace")[:200]
