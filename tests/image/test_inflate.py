"""Inflating: what the bytes are decides, digests cover everything, garbage is an error."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import struct
import sys
from collections.abc import Callable

import pytest

from pycontain.errors import SizeMismatch, UnsafeLayer, Unsupported
from pycontain.image.inflate import Inflater, Limits

DATA = bytes(range(256)) * 9000


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd", reason="needs zstd")
    return bytes(module.compress(data))


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "zstd": zstd,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


def inflate(data: bytes, expected_bytes: int | None = None, limits: Limits | None = None) -> bytes:
    inflater = Inflater(io.BytesIO(data).read, expected_bytes=expected_bytes, limits=limits)
    parts = []
    while part := inflater.read():
        assert len(part) <= 1 << 20
        parts.append(part)
    assert inflater.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert inflater.diff_id == "sha256:" + hashlib.sha256(b"".join(parts)).hexdigest()
    return b"".join(parts)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_by_its_bytes(codec: str) -> None:
    """The stream's first bytes tell what it is; both digests are right."""
    assert inflate(CODECS[codec](DATA)) == DATA


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bzip2", "xz"])
def test_several_members(codec: str) -> None:
    """Members one after the other are one stream, and zeros may follow (bootc#2408)."""
    compress = CODECS[codec]
    assert inflate(compress(b"one") + compress(b"two") + bytes(700)) == b"onetwo"


def test_skippable_zstd_frames() -> None:
    """Frames that carry no data are skipped, before, between and after."""
    skip = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    assert inflate(skip + zstd(b"one") + skip + zstd(b"two") + skip) == b"onetwo"


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bzip2", "xz"])
def test_broken_streams(codec: str) -> None:
    """Cut, changed, or with garbage behind: an error each."""
    good = CODECS[codec](DATA)
    for bad in (good[:-1], good + b"garbage!", good[: len(good) // 2] + b"\xff" * 40):
        with pytest.raises(UnsafeLayer):
            inflate(bad)


def test_limits() -> None:
    """Size and ratio end a bomb; small streams may have any ratio."""
    bomb = gzip.compress(bytes(20 << 20))
    with pytest.raises(UnsafeLayer, match="200:1"):
        inflate(bomb, limits=Limits(ratio_from_bytes=1 << 20))
    with pytest.raises(UnsafeLayer, match="more than"):
        inflate(bomb, limits=Limits(inflated_bytes=1 << 20))
    assert len(inflate(bomb)) == 20 << 20


@pytest.mark.parametrize("difference", [-1, 1])
def test_descriptor_size_is_exact(difference: int) -> None:
    """More or fewer bytes than promised is a SizeMismatch."""
    data = gzip.compress(DATA)
    with pytest.raises(SizeMismatch):
        inflate(data, expected_bytes=len(data) + difference)


def test_huge_zstd_window_is_refused() -> None:
    """A frame that wants more than 128 MiB of memory is an error."""
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    pytest.importorskip("backports.zstd", reason="needs zstd")
    with pytest.raises(UnsafeLayer):
        inflate(frame)


def test_without_zstd_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zstd layer without the optional package names the extra."""
    monkeypatch.setitem(sys.modules, "backports", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(Unsupported, match=r"pycontain\[zstd\]"):
        inflate(b"\x28\xb5\x2f\xfd" + bytes(20))
