"""The content store: an OCI image layout that skopeo and podman can read, and its locks.

Blobs are named by digests that we computed. index.json is the only file that changes, by
write, fsync, rename; it lists every image once per name, and once without if it has none.

Source: OCI image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from pycontain.errors import ImageNotFound, InternalError, MalformedManifest
from pycontain.oci import Digest
from pycontain.values import frozen

from . import manifest as documents
from .archive import write_all
from .formats import REF_NAME

UNPACKED_BYTES = "dev.pycontain.unpacked-bytes"
IMPORTED = "dev.pycontain.imported"


@frozen
class Row:
    """One image of the store: a manifest and all its names."""

    digest: Digest
    manifest_bytes: int
    names: tuple[str, ...]
    unpacked_bytes: int
    imported: str


@frozen
class Index:
    """index.json as it was at one moment."""

    rows: dict[Digest, Row]
    by_name: dict[str, Digest]


class ContentStore:
    """Documents, layers and the index below `path`. Opening it touches nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._index_path = f"{path}/index.json"
        self._cached: tuple[tuple[int, int, int], Index] | None = None

    def create(self) -> None:
        """The store's directories and its layout mark exist, readable by the owner only."""
        if os.path.exists(f"{self.path}/oci-layout"):
            return
        for directory in (self.path, f"{self.path}/blobs", f"{self.path}/blobs/sha256"):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        replace_file(f"{self.path}/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    def blob_path(self, digest: Digest) -> str:
        """Returns where the blob is or would be."""
        return f"{self.path}/blobs/sha256/{documents.check_digest(digest, 'digest')[7:]}"

    def has(self, digest: Digest) -> bool:
        """True if the blob is there; what is there was verified when it was stored."""
        return os.path.exists(self.blob_path(digest))

    def read(self, digest: Digest) -> bytes:
        """Returns a document."""
        try:
            with open(self.blob_path(digest), "rb") as file:
                return file.read(documents.MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            raise ImageNotFound(
                f"the image store lacks {digest}", hint="import the image again"
            ) from None

    def index(self) -> Index:
        """Returns the index; parsed again only if the file changed."""
        try:
            info = os.stat(self._index_path)
        except FileNotFoundError:
            return Index({}, {})
        signature = (info.st_mtime_ns, info.st_ino, info.st_size)
        cached = self._cached
        if cached is not None and cached[0] == signature:
            return cached[1]
        with open(self._index_path, "rb") as file:
            data = file.read()
        index = _parse(data)
        self._cached = (signature, index)
        return index

    def update(self, change: Callable[[dict[Digest, Row]], None]) -> Index:
        """Applies `change` to the rows, alone among all processes; returns the new index."""
        self.create()
        with locked(f"{self.path}/index.lock"):
            rows = dict(self.index().rows)
            change(rows)
            data = _serialise(rows)
            replace_file(self._index_path, data)
            self._cached = None
            return _parse(data)


def replace_file(path: str, data: bytes) -> None:
    """`path` has `data`, now and after a power cut, or is as it was before."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """The directory's entries are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(path: str, *, shared: bool = False, keep: bool = True) -> Iterator[None]:
    """Holds the lock file `path`, made if missing; the kernel drops it if we die.

    With `keep=False` the file is removed at the end, for locks named after content.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            # The holder before us may have removed the file that we waited for.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        if not keep:
            stack.callback(_unlink_quietly, path)
        yield


def _unlink_quietly(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _parse(data: bytes) -> Index:
    try:
        descriptors = documents.parse_index(data, "the store's index.json")
    except MalformedManifest as e:
        raise InternalError(e.message, hint="import the images again") from e
    rows: dict[Digest, Row] = {}
    by_name: dict[str, Digest] = {}
    for descriptor in descriptors:
        notes = dict(descriptor.annotations)
        old = rows.get(descriptor.digest)
        names = old.names if old else ()
        if name := notes.get(REF_NAME, ""):
            names = (*names, name)
            by_name[name] = descriptor.digest
        size = notes.get(UNPACKED_BYTES, "0")
        rows[descriptor.digest] = Row(
            digest=descriptor.digest,
            manifest_bytes=descriptor.size_bytes,
            names=names,
            unpacked_bytes=int(size) if size.isdigit() else 0,
            imported=notes.get(IMPORTED, ""),
        )
    return Index(rows, by_name)


def _serialise(rows: dict[Digest, Row]) -> bytes:
    entries: list[dict[str, object]] = []
    for row in rows.values():
        notes = {UNPACKED_BYTES: str(row.unpacked_bytes), IMPORTED: row.imported}
        for name in row.names or ("",):
            entries.append(
                {
                    "mediaType": documents.MANIFEST,
                    "digest": row.digest,
                    "size": row.manifest_bytes,
                    "annotations": {**notes, REF_NAME: name} if name else notes,
                }
            )
    document = {"schemaVersion": 2, "mediaType": documents.INDEX, "manifests": entries}
    return json.dumps(document, indent=1).encode()
