"""The tar parser: what it reads, against the standard library; what it refuses."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import END, directory, file, gnu_long, hardlink, header, listing, octal, padded, pax

from pycontain.errors import UnsafeLayer
from pycontain.image import tar

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(NAMES, min_size=1, max_size=8),
            st.binary(max_size=2000),
            st.integers(0, 2**32 - 2),
            st.integers(0, 2**34),
            st.integers(0, 0o7777),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([7, 512, 1 << 20]),
)
def test_reads_what_the_standard_library_writes(
    files: list[tuple[list[str], bytes, int, int, int]], form: int, chunk_bytes: int
) -> None:
    """Names, ids, times and data come back, in both formats, however the bytes arrive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for parts, data, number, mtime, mode in files:
            info = tarfile.TarInfo("a/" + "/".join(parts))
            info.size, info.uid, info.gid = len(data), number, number
            info.mtime, info.mode = mtime, mode
            archive.addfile(info, io.BytesIO(data))
    found = [
        (e.name, data, e.uid, e.gid, e.mtime_ns, e.mode)
        for e, data in listing(buffer.getvalue(), chunk_bytes)
    ]
    assert found == [
        (("a/" + "/".join(p)).encode(), data, n, n, mtime * 10**9, mode)
        for p, data, n, mtime, mode in files
    ]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_bytes_are_an_error_or_an_entry(data: st.DataObject) -> None:
    """Whatever is flipped in a tar, the parser ends, with UnsafeLayer or with entries."""
    good = bytearray(
        pax((b"path", b"p" * 150), (b"mtime", b"1.5"))
        + file(b"x", b"y" * 700)
        + gnu_long(b"L", b"n" * 200)
        + file(b"z")
        + END
    )
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for start in range(0, len(good), 512):  # most changes would only be caught by the checksum
        block = good[start : start + 512]
        total = sum(block) - sum(block[148:156]) + 256
        if data.draw(st.booleans()) and any(block):
            good[start + 148 : start + 156] = b"%06o\0 " % total
    with contextlib.suppress(UnsafeLayer):
        listing(bytes(good))


def test_pax_size_counts() -> None:
    """The pax size says how much data follows, not the header's (CVE-2025-62518)."""
    inner = file(b"smuggled")
    data = pax((b"size", b"%d" % len(inner))) + header(b"outer", size=0) + inner + END
    assert [(e.name, d) for e, d in listing(data)] == [(b"outer", inner)]


def test_pax_does_not_change_a_long_name_record() -> None:
    """A pax size before a GNU long name is the file's, not the name's (CVE-2026-53655)."""
    data = pax((b"size", b"4")) + gnu_long(b"L", b"n" * 120) + header(b"short") + padded(b"four")
    assert [(e.name, d) for e, d in listing(data + END)] == [(b"n" * 120, b"four")]


def test_pax_changes_one_entry_only() -> None:
    """The entry after the next has its own name and time again."""
    data = pax((b"path", b"long"), (b"mtime", b"12.345678901")) + file(b"a") + file(b"b") + END
    first, second = (entry for entry, _ in listing(data))
    assert (first.name, first.mtime_ns) == (b"long", 12_345_678_901)
    assert (second.name, second.mtime_ns) == (b"b", 10**18)


def test_global_pax_is_ignored() -> None:
    """A global header changes nothing."""
    (entry, _), *_ = listing(pax((b"path", b"evil"), flag=b"g") + file(b"good") + END)
    assert entry.name == b"good"


def test_base_256_and_negative_times() -> None:
    """Ids beyond octal and times before 1970 are read."""
    data = file(b"f", uid=b"\x80" + (3_000_000_000).to_bytes(7, "big"), mtime=b"\xff" * 12) + END
    (entry, _), *_ = listing(data)
    assert (entry.uid, entry.mtime_ns) == (3_000_000_000, -(10**9))


def test_prefix_belongs_to_posix_headers_only() -> None:
    """GNU keeps times where ustar keeps the name's prefix."""
    data = file(b"n", prefix=b"dir") + file(b"n", magic=b"ustar  \0", tail=b"12345") + END
    assert [e.name for e, _ in listing(data)] == [b"dir/n", b"n"]


def sparse_old() -> bytes:
    maps = b"".join(octal(n, 12) for n in (0, 3, 1024, 2)).ljust(96, b"\0")
    tail = bytes(41) + maps + b"\0" + octal(4096, 12)
    return header(b"s", b"S", size=5, magic=b"ustar  \0", tail=tail) + padded(b"abcde")


def sparse_old_extended() -> bytes:
    maps = b"".join(octal(n, 12) for n in (0, 1, 512, 1, 1024, 1, 1536, 1))
    tail = bytes(41) + maps + b"\1" + octal(4096, 12)
    block = (octal(2048, 12) + octal(1, 12)).ljust(512, b"\0")
    return header(b"s", b"S", size=5, magic=b"ustar  \0", tail=tail) + block + padded(b"abcde")


def sparse_pax(*records: tuple[bytes, bytes], data: bytes = b"abcde") -> bytes:
    return pax(*records) + header(b"GNUSparseFile.0/s", size=len(data)) + padded(data)


SPARSE = {
    "old": (sparse_old(), [(0, 3), (1024, 2)]),
    "old-extended": (sparse_old_extended(), [(n * 512, 1) for n in range(5)]),
    "0.0": (
        sparse_pax(
            (b"GNU.sparse.size", b"4096"),
            (b"GNU.sparse.numblocks", b"2"),
            (b"GNU.sparse.offset", b"0"),
            (b"GNU.sparse.numbytes", b"3"),
            (b"GNU.sparse.offset", b"1024"),
            (b"GNU.sparse.numbytes", b"2"),
        ),
        [(0, 3), (1024, 2)],
    ),
    "0.1": (
        sparse_pax((b"GNU.sparse.size", b"4096"), (b"GNU.sparse.map", b"0,3,1024,2")),
        [(0, 3), (1024, 2)],
    ),
    "1.0": (
        sparse_pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"4096"),
            data=padded(b"2\n0\n3\n1024\n2\n") + b"abcde",
        ),
        [(0, 3), (1024, 2)],
    ),
}


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_formats(form: str) -> None:
    """All four sparse formats give the same extents, size and data."""
    data, extents = SPARSE[form]
    (entry, stored), (after, _) = listing(data + file(b"after") + END)
    assert (entry.extents, entry.size_bytes, stored) == (extents, 4096, b"abcde")
    assert (entry.type, after.name) == (tar.FILE, b"after")


REFUSED = {
    "checksum": header(checksum=1) + END,
    "cut-header": file(b"a")[:700],
    "cut-data": header(size=5000) + bytes(512),
    "lone-zero-block": bytes(512) + file(b"hidden") + END,
    "negative-size": header(size=b"\xff" * 12),
    "huge-size": header(size=b"\x80" + b"\xff" * 11),
    "size-with-sign": header(size=b"+0000000001\0"),
    "size-with-underscore": header(size=b"0_1".ljust(12, b"\0")),
    "size-not-octal": header(size=b"00000000009\0"),
    "uid-minus-one": header(uid=b"\x80" + (2**32 - 1).to_bytes(7, "big")),
    "unknown-type": header(flag=b"M"),
    "directory-with-data": header(b"d", b"5", size=512) + file(b"x"),
    "link-with-data": header(b"l", b"1", link=b"f", size=512) + file(b"x"),
    "pax-too-large": header(b"x", b"x", size=(1 << 20) + 1),
    "pax-claims-gigabytes": header(b"x", b"x", size=1 << 30),
    "pax-length-zero": pax(raw=b"0 a=b\n") + file(b"f"),
    "pax-length-beyond": pax(raw=b"99 a=b\n") + file(b"f"),
    "pax-length-short": pax(raw=b"5 a=bc\n") + file(b"f"),
    "pax-no-equals": pax(raw=b"6 abc\n") + file(b"f"),
    "pax-signed-length": pax(raw=b"+6 a=b\n") + file(b"f"),
    "pax-garbage": pax(raw=b"garbage") + file(b"f"),
    "pax-duplicate-path": pax((b"path", b"a"), (b"path", b"b")) + file(b"f"),
    "pax-nul-in-path": pax((b"path", b"a\0b")) + file(b"f"),
    "pax-size-negative": pax((b"size", b"-1")) + file(b"f"),
    "pax-uid-too-large": pax((b"uid", b"4294967295")) + file(b"f"),
    "pax-mtime": pax((b"mtime", b"1e9")) + file(b"f"),
    "pax-twice": pax((b"path", b"a")) + pax((b"path", b"b")) + file(b"f"),
    "pax-then-end": pax((b"path", b"a")) + END,
    "xattr-too-large": pax((b"SCHILY.xattr.user.a", b"x" * 70_000)) + file(b"f"),
    "long-name-twice": gnu_long(b"L", b"a") + gnu_long(b"L", b"b") + file(b"f"),
    "long-name-with-nul": gnu_long(b"L", b"a\0b") + file(b"f"),
    "two-names": pax((b"path", b"a")) + gnu_long(b"L", b"b") + file(b"f"),
    "endless-meta": pax((b"path", b"a"), flag=b"g") * 20 + file(b"f"),
    "sparse-overlap": sparse_pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,3,1,2")),
    "sparse-beyond": sparse_pax((b"GNU.sparse.size", b"4"), (b"GNU.sparse.map", b"0,3,4,2")),
    "sparse-more-than-stored": sparse_pax(
        (b"GNU.sparse.size", b"4096"), (b"GNU.sparse.map", b"0,4000")
    ),
    "sparse-odd": sparse_pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,3,4")),
    "sparse-0.0-out-of-step": sparse_pax((b"GNU.sparse.numbytes", b"9")),
    "sparse-1.0-map-endless": sparse_pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"9"),
        data=padded(b"99999999\n"),
    ),
    "sparse-2.0": sparse_pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")),
    "sparse-empty-extension": header(
        b"s", b"S", magic=b"ustar  \0", tail=bytes(137) + b"\1" + octal(9, 12)
    )
    + bytes(504)
    + b"\1"
    + bytes(7),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_malformed_is_an_error(case: str, chunk_bytes: int) -> None:
    """Nothing malformed is skipped or guessed (C6, C7)."""
    with pytest.raises(UnsafeLayer):
        listing(REFUSED[case] + END, chunk_bytes)


def test_v7_directory_and_links() -> None:
    """A v7 name that ends with a slash is a directory; links have their target."""
    data = header(b"d/", b"\0", magic=bytes(8)) + hardlink(b"l", b"t") + directory(b"e/") + END
    assert [(e.type, e.link_name) for e, _ in listing(data)] == [
        (tar.DIRECTORY, b""),
        (tar.HARDLINK, b"t"),
        (tar.DIRECTORY, b""),
    ]


def test_seek_skips_data() -> None:
    """With a seekable file, data that nobody wants is not read."""
    data = file(b"big", bytes(1 << 20)) + file(b"small") + END
    stream = io.BytesIO(data)
    read: list[int] = []

    def pull() -> bytes:
        chunk = stream.read(4096)
        read.append(len(chunk))
        return chunk

    source = tar.TarReader(pull, lambda offset: void(stream.seek(offset)))
    names = []
    while (entry := source.next()) is not None:
        names.append((entry.name, data[entry.data_offset :][: entry.size_bytes][:4]))
    assert names == [(b"big", bytes(4)), (b"small", b"data")]
    assert sum(read) < 20_000


def void(_: object) -> None:
    """Drops a result."""
