"""Takes an image into the store: verified while it streams, visible whole or not at all.

    source -> sha256 -> (copy to the store) -> inflate -> sha256 -> parser -> files

Everything is made in a private staging directory. Once sizes, digests and diff ids are right,
one sync makes it durable, renames make it visible, and the index says so last: no crash leaves an
index that promises what is not there. A staging directory is locked by its owner; one without an
owner is what a crash left, and the next import removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from pycontain import _native
from pycontain.errors import DigestMismatch, MalformedManifest, WrongState
from pycontain.oci import Descriptor, Digest
from pycontain.values import frozen, replace

from . import manifest as documents
from .archive import Member, write_all
from .content import ContentStore, Row, locked, sync_directory
from .formats import Found, Layer
from .inflate import Inflater
from .removal import remove_path
from .tar import TarReader
from .unpack import Policy, Unpacked, unpack

SHARED = "shared"
_COMPRESSED = {"gzip": "+gzip", "zstd": "+zstd"}


@frozen
class Places:
    """Where things are below the data root."""

    root: str

    @property
    def images(self) -> str:
        """The content store."""
        return f"{self.root}/images"

    @property
    def staging(self) -> str:
        """What is being made."""
        return f"{self.root}/staging"

    def layer(self, key: str) -> str:
        """An unpacked layer, by the hex of its chain id or diff id."""
        return f"{self.root}/layers/{key}"

    def create(self) -> None:
        """All directories exist, for the owner only (CVE-2021-41091: setuid files inside)."""
        for name in ("images", "layers", "staging", "locks"):
            os.makedirs(f"{self.root}/{name}", mode=0o700, exist_ok=True)


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Returns the chain id of each layer: what it is together with all below (config.md)."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        if chains:
            text = f"{chains[-1]} {diff_id}".encode()
            diff_id = Digest("sha256:" + hashlib.sha256(text).hexdigest())
        chains.append(diff_id)
    return chains


def layer_directory(places: Places, chain: Digest, diff_id: Digest) -> str | None:
    """Returns the unpacked layer, or None.

    It has its chain's name, because directories that its tar only implies take after the layers
    below; one that implies none has its diff id's name and the mark of being the same everywhere.
    """
    path = places.layer(chain[7:])
    if os.path.exists(f"{path}/fs"):
        return path
    path = places.layer(diff_id[7:])
    shared = os.path.exists(f"{path}/{SHARED}") and os.path.exists(f"{path}/fs")
    return path if shared else None


class Ingest:
    """One import. Use it in a `with`; nothing stays of it unless `finish` returned."""

    def __init__(self, places: Places, content: ContentStore, policy: Policy | None = None) -> None:
        self._places = places
        self._content = content
        self._policy = policy or Policy()
        self._stack = ExitStack()
        self._renames: list[tuple[str, str]] = []
        self._counter = 0
        self._path = ""

    def __enter__(self) -> Ingest:
        self._places.create()
        self._content.create()
        with self._stack as stack:
            # Shared: `prune` waits until nobody holds half an image.
            stack.enter_context(locked(f"{self._places.root}/locks/store", shared=True))
            clear_staging(self._places)
            self._path = stack.enter_context(_Staging(self._places.staging))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def spool(self) -> int:
        """Returns a new temporary file, which the caller closes."""
        return os.open(self._new_path(), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def add(self, found: Found) -> Row:
        """Stages `found`; returns what the index is to say of it."""
        if not found.layers:
            raise MalformedManifest("an image without layers")
        diff_ids = [layer.diff_id for layer in found.layers]
        for diff_id in sorted(set(diff_ids)):  # sorted: two imports can't wait for each other
            path = f"{self._places.root}/locks/{diff_id[7:]}"
            self._stack.enter_context(locked(path, keep=False))
        lower: list[str] = []
        descriptors: list[Descriptor] = []
        total_bytes = 0
        for layer, chain in zip(found.layers, chain_ids(diff_ids), strict=True):
            directory, descriptor = self.add_layer(layer, chain, lower)
            total_bytes += _unpacked_bytes(directory)
            lower.insert(0, f"{directory}/fs")
            descriptors.append(descriptor)
        config = self.add_blob(found.config)
        data = found.manifest or _manifest(found.config, config, descriptors)
        imported = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return Row(self.add_blob(data), len(data), (), total_bytes, imported)

    def add_blob(self, data: bytes) -> Digest:
        """Stages a document; returns its digest."""
        digest = Digest("sha256:" + hashlib.sha256(data).hexdigest())
        if not self._has(digest):
            path = self._new_path()
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
            self._renames.append((path, self._content.blob_path(digest)))
        return digest

    def add_layer(
        self, layer: Layer, chain: Digest, lower: Sequence[str]
    ) -> tuple[str, Descriptor]:
        """Stages a layer where it is not in the store already.

        Returns its directory and its descriptor: the given one, or that of the bytes read.

        Raises:
            DigestMismatch, SizeMismatch: the bytes are not what the documents promise.
        """
        directory = layer_directory(self._places, chain, layer.diff_id) or self._staged(
            chain, layer.diff_id
        )
        given = layer.descriptor
        if directory and given is not None and self._has(given.digest):
            return directory, given
        member = layer.member
        if given is not None and self._content.has(given.digest):
            member = self._stored(given)
        if member is None:
            raise MalformedManifest(f"the blob of layer {layer.diff_id} is missing")
        directory, descriptor, _ = self._read_layer(
            member, layer.diff_id, given, chain, lower, directory
        )
        return directory, descriptor

    def add_unknown_layer(self, member: Member) -> Layer:
        """Stages a lowest layer of which nothing is known yet, as `image import` has it."""
        _, descriptor, diff_id = self._read_layer(member, None, None, None, (), None)
        return Layer(diff_id, descriptor, None)

    def finish(self, row: Row, name: str) -> None:
        """The image is in the store, durably, under `name` if that is given."""
        if self._renames:  # data must never be younger than its names
            fd = os.open(self._places.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _native.syncfs(fd)
            finally:
                os.close(fd)
        parents: set[str] = set()
        for staged, final in self._renames:
            try:
                os.rename(staged, final)
            except OSError:
                if not os.path.exists(final):
                    raise
                if os.path.isdir(staged) and not os.path.exists(f"{final}/fs"):
                    remove_path(final)  # half a layer, which no import leaves
                    os.rename(staged, final)
                # else somebody was faster; the content is the same
            parents.add(os.path.dirname(final))
        for parent in parents:
            sync_directory(parent)

        def change(rows: dict[Digest, Row]) -> None:
            rows.setdefault(row.digest, row)
            if name:
                set_name(rows, name, row.digest)

        self._content.update(change)

    def _read_layer(
        self,
        member: Member,
        diff_id: Digest | None,
        given: Descriptor | None,
        chain: Digest | None,
        lower: Sequence[str],
        directory: str | None,
    ) -> tuple[str, Descriptor, Digest]:
        """Reads a layer once: verifies it, keeps its blob, and unpacks it unless `directory`."""
        blob_path = self._new_path()
        unpacked: Unpacked | None = None
        blob_fd = os.open(blob_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            inflater = Inflater(member.read, expected_bytes=given.size_bytes if given else None)
            keep_inflated = inflater.compression not in ("", *_COMPRESSED)
            inflater.copy_to(lambda data: write_all(blob_fd, data), inflated=keep_inflated)
            if directory is None:
                directory, unpacked = self._unpack(inflater, lower)
            else:
                while inflater.read():
                    pass
        finally:
            os.close(blob_fd)
        digest = inflater.diff_id if keep_inflated else inflater.digest
        if given is not None and digest != given.digest:
            raise DigestMismatch(f"layer {given.digest} has the digest {digest}")
        if diff_id is not None and inflater.diff_id != diff_id:
            raise DigestMismatch(f"layer with diff id {diff_id} inflates to {inflater.diff_id}")
        if unpacked is not None:
            key = inflater.diff_id if unpacked.self_contained or chain is None else chain
            self._renames.append((directory, self._places.layer(key[7:])))
        if not self._content.has(digest):
            self._renames.append((blob_path, self._content.blob_path(digest)))
        size = inflater.inflated_bytes if keep_inflated else inflater.raw_bytes
        suffix = "" if keep_inflated else _COMPRESSED.get(inflater.compression, "")
        descriptor = given or Descriptor(documents.LAYER + suffix, digest, size)
        return directory, descriptor, inflater.diff_id

    def _unpack(self, inflater: Inflater, lower: Sequence[str]) -> tuple[str, Unpacked]:
        """Unpacks into a new staged directory."""
        directory = self._new_path()
        os.mkdir(directory, 0o700)
        os.mkdir(f"{directory}/fs", 0o700)
        root_fd = os.open(f"{directory}/fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chmod(root_fd, 0o700)  # not the setgid bit that the parent may hand down
            done = unpack(TarReader(inflater.read), root_fd, lower=lower, policy=self._policy)
        finally:
            os.close(root_fd)
        notes = {"entries": done.entries, "file_bytes": done.file_bytes, "skipped": done.skipped}
        with open(f"{directory}/layer.json", "w", encoding="ascii") as file:
            json.dump(notes, file)
        if done.self_contained:
            os.mkdir(f"{directory}/{SHARED}", 0o700)
        return directory, done

    def _staged(self, chain: Digest, diff_id: Digest) -> str | None:
        for staged, final in self._renames:
            if final == self._places.layer(chain[7:]) or (
                final == self._places.layer(diff_id[7:]) and os.path.exists(f"{staged}/{SHARED}")
            ):
                return staged
        return None

    def _has(self, digest: Digest) -> bool:
        final = self._content.blob_path(digest)
        return self._content.has(digest) or any(path == final for _, path in self._renames)

    def _stored(self, descriptor: Descriptor) -> Member:
        fd = os.open(self._content.blob_path(descriptor.digest), os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return Member(fd, 0, os.fstat(fd).st_size)

    def _new_path(self) -> str:
        self._counter += 1
        return f"{self._path}/{self._counter}"


class _Staging:
    """A locked directory of our own, removed with what is left in it."""

    def __init__(self, parent: str) -> None:
        self._parent = parent

    def __enter__(self) -> str:
        while True:
            self._path = f"{self._parent}/{os.getpid()}-{os.urandom(6).hex()}"
            os.mkdir(self._path, 0o700)
            # A cleaner may come between: then the directory is gone or locked, and we try again.
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self._path).st_ino == os.fstat(self._fd).st_ino:
                    return self._path
            os.close(self._fd)

    def __exit__(self, *_: object) -> None:
        try:
            remove_path(self._path)
        finally:
            os.close(self._fd)


def clear_staging(places: Places) -> None:
    """What crashed imports left is gone; running ones are not touched."""
    with suppress(FileNotFoundError):
        for name in os.listdir(places.staging):
            path = f"{places.staging}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_path(path)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)


def set_name(rows: dict[Digest, Row], name: str, digest: Digest) -> None:
    """`name` is one of `digest`'s names, and of no other image."""
    if digest not in rows:
        raise WrongState(f"image {digest} was removed meanwhile")
    for other, row in list(rows.items()):
        if name in row.names:
            rows[other] = replace(row, names=tuple(n for n in row.names if n != name))
    rows[digest] = replace(rows[digest], names=(*rows[digest].names, name))


def _unpacked_bytes(directory: str) -> int:
    with open(f"{directory}/layer.json", encoding="ascii") as file:
        return int(json.load(file)["file_bytes"])


def _manifest(config: bytes, config_digest: Digest, layers: Sequence[Descriptor]) -> bytes:
    """Returns a manifest for an image that came without one."""
    document = {
        "schemaVersion": 2,
        "mediaType": documents.MANIFEST,
        "config": {"mediaType": documents.CONFIG, "digest": config_digest, "size": len(config)},
        "layers": [
            {"mediaType": d.media_type, "digest": d.digest, "size": d.size_bytes} for d in layers
        ],
    }
    return json.dumps(document, sort_keys=True).encode()
