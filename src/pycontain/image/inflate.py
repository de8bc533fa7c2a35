"""One pass over a compressed stream: hash, inflate, hash again, under limits.

What compresses a stream is told by its first bytes, never by a media type or a file name. gzip and
zstd may have several members (zstd also skippable frames); anything else behind them is an error.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from pycontain.errors import SizeMismatch, UnsafeLayer, Unsupported
from pycontain.oci import Digest
from pycontain.values import frozen

READ_BYTES = 128 << 10
CHUNK_BYTES = 1 << 20
ZSTD_WINDOW_LOG_MAX = 27  # 128 MiB
XZ_MEMORY_BYTES = 256 << 20

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@frozen
class Limits:
    """How much a stream may inflate; the ratio counts above `ratio_from_bytes` only."""

    inflated_bytes: int = 64 << 30
    ratio: int = 200
    ratio_from_bytes: int = 64 << 20


class _Decoder(Protocol):
    """The shape that bz2, lzma and zstd decompressors share, and that _Gzip gives zlib's."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """One gzip member, in the shape of _Decoder."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        tail = self._inflate.unconsumed_tail
        return self._inflate.decompress(tail + data if tail else data, max_length)


def compression_of(head: bytes) -> str:
    """Returns "gzip", "zstd", "xz", "bzip2" or "" (none) for a stream that begins with `head`."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] == _ZSTD_MAGIC or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    return "bzip2" if head[:3] == b"BZh" else ""


class Inflater:
    """`read()` gives the inflated stream in chunks of at most 1 MiB, b"" at its end.

    `raw` returns the compressed bytes. Both digests are complete once `read()` returned b"".
    """

    def __init__(
        self,
        raw: Callable[[int], bytes],
        *,
        limits: Limits | None = None,
        expected_bytes: int | None = None,
    ) -> None:
        self._raw = raw
        self._tee: Callable[[bytes], object] | None = None
        self._tee_inflated: Callable[[bytes], object] | None = None
        self._limits = limits or Limits()
        self._expected_bytes = expected_bytes
        self._raw_hash = hashlib.sha256()
        self._inflated_hash = hashlib.sha256()
        self.raw_bytes = 0
        self.inflated_bytes = 0
        self._head = b""
        while len(self._head) < 6 and (data := self._pull()):
            self._head += data
        self.compression = compression_of(self._head)
        self._codec_errors = _codec_errors(self.compression)
        self._decoder = self._new_decoder() if self.compression else None

    def copy_to(self, sink: Callable[[bytes], object], *, inflated: bool = False) -> None:
        """`sink` gets the whole compressed (or inflated) stream; to be called before `read()`."""
        if inflated:
            self._tee_inflated = sink
        else:
            sink(self._head)
            self._tee = sink

    @property
    def digest(self) -> Digest:
        """The digest of the compressed stream as far as it was read."""
        return Digest("sha256:" + self._raw_hash.hexdigest())

    @property
    def diff_id(self) -> Digest:
        """The digest of the inflated stream as far as it was read."""
        if not self.compression:
            return self.digest
        return Digest("sha256:" + self._inflated_hash.hexdigest())

    def read(self) -> bytes:
        """Returns the next chunk.

        Raises:
            UnsafeLayer: not a valid stream, or it inflates beyond the limits.
            SizeMismatch: there are more or fewer compressed bytes than expected.
        """
        data, self._head = self._head, b""
        if self._decoder is None:
            data = data or self._pull()
            self.inflated_bytes += len(data)
        else:
            data = self._inflate(data)
            self._inflated_hash.update(data)
            self.inflated_bytes += len(data)
            self._check_limits()
        if data and self._tee_inflated is not None:
            self._tee_inflated(data)
        return data

    def _pull(self) -> bytes:
        data = self._raw(READ_BYTES)
        self.raw_bytes += len(data)
        expected = self._expected_bytes
        if expected is not None and (
            self.raw_bytes > expected or (not data and self.raw_bytes < expected)
        ):
            raise SizeMismatch(f"blob has {self.raw_bytes} bytes or more, descriptor {expected}")
        self._raw_hash.update(data)
        if self._tee is not None and data:
            self._tee(data)
        return data

    def _inflate(self, data: bytes) -> bytes:
        """Returns some inflated bytes; b"" only when the compressed stream has ended."""
        decoder = self._decoder
        assert decoder is not None
        while True:
            if decoder.eof:
                data = decoder.unused_data + data
                data = data or self._pull()
                if not data or self._only_padding(data):
                    return b""
                decoder = self._decoder = self._new_decoder()
            elif not data and decoder.needs_input:
                data = self._pull()
                if not data:
                    raise UnsafeLayer(f"the {self.compression} stream is cut short")
            try:
                out = decoder.decompress(data, CHUNK_BYTES)
            except self._codec_errors as e:
                raise UnsafeLayer(f"not a valid {self.compression} stream: {e}") from e
            data = b""
            if out:
                return out

    def _only_padding(self, data: bytes) -> bool:
        """True if zeros follow to the end, as tape blocks leave them; they are read then."""
        if data[0]:
            return False
        while data:
            if data.strip(b"\0"):
                raise UnsafeLayer(f"garbage after the {self.compression} stream")
            data = self._pull()
        return True

    def _check_limits(self) -> None:
        limits = self._limits
        if self.inflated_bytes > limits.inflated_bytes:
            raise UnsafeLayer(f"inflates to more than {limits.inflated_bytes} bytes")
        if (
            self.inflated_bytes > limits.ratio_from_bytes
            and self.inflated_bytes > limits.ratio * self.raw_bytes
        ):
            raise UnsafeLayer(f"inflates more than {limits.ratio}:1")

    def _new_decoder(self) -> _Decoder:
        if self.compression == "gzip":
            return _Gzip()
        if self.compression == "zstd":
            zstd = _zstd()
            window = zstd.DecompressionParameter.window_log_max
            decoder: _Decoder = zstd.ZstdDecompressor(options={window: ZSTD_WINDOW_LOG_MAX})
            return decoder
        if self.compression == "xz":
            import lzma

            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
        import bz2

        return bz2.BZ2Decompressor()


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise Unsupported(
                "a layer compressed with zstd",
                needs="Python 3.14 or the package backports.zstd",
                hint="pip install 'pycontain[zstd]'",
            ) from None
    return zstd


def _codec_errors(compression: str) -> tuple[type[Exception], ...]:
    """Returns what a decoder raises about its input; bz2 raises OSError."""
    errors: tuple[type[Exception], ...] = (zlib.error, OSError, EOFError, ValueError)
    if compression == "xz":
        import lzma

        return (*errors, lzma.LZMAError)
    return (*errors, _zstd().ZstdError) if compression == "zstd" else errors
