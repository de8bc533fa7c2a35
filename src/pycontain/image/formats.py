"""What an OCI layout or a `docker save` archive holds: documents, and where its layers are."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from pycontain.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidReference,
    MalformedManifest,
    SizeMismatch,
)
from pycontain.oci import Descriptor, Digest
from pycontain.values import frozen

from . import manifest as documents
from . import platforms
from .archive import Member, Source, read_document
from .reference import familiar

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
MAX_INDEX_DEPTH = 4


@frozen
class Layer:
    """A layer that may have to be read; `descriptor` is None if only the diff id is known."""

    diff_id: Digest
    descriptor: Descriptor | None
    member: Member | None


@frozen
class Found:
    """An image in a source. `manifest` is None if the format has none (`docker save`, old)."""

    manifest: bytes | None
    config: bytes
    layers: tuple[Layer, ...]


def is_oci(source: Source) -> bool:
    """True if the source is an OCI image layout."""
    return source.open("index.json") is not None and source.open("oci-layout") is not None


def find_oci(source: Source, tag: str) -> Digest:
    """Returns the digest of the manifest that `tag` (or the only image) has for this host.

    Raises:
        ImageNotFound: no such tag, several images and no tag, or none for this host.
    """
    descriptors = _top(source)
    if tag:
        named = [d for d in descriptors if tag in _names(d)]
        if not named:
            raise ImageNotFound(f"{source.path} has no image {tag!r}", hint=_offer(descriptors))
        descriptors = named
    images = {name for d in descriptors for name in _names(d)[:1]}
    if not tag and len(images) > 1:
        raise ImageNotFound(f"{source.path} has several images", hint=_offer(descriptors))
    for _ in range(MAX_INDEX_DEPTH):
        if not descriptors:
            raise ImageNotFound(f"{source.path} is empty")
        alone = len({d.digest for d in descriptors}) == 1
        chosen = descriptors[0] if alone else platforms.select(descriptors, source.path)
        if chosen.media_type not in documents.INDEXES:
            return chosen.digest
        data = read_blob(source, chosen)
        descriptors = documents.parse_index(data, f"{source.path}: {chosen.digest}")
    raise MalformedManifest(f"{source.path}: indexes nested deeper than {MAX_INDEX_DEPTH}")


def read_oci(source: Source, digest: Digest) -> Found:
    """Returns the image whose manifest is `digest`, its documents verified."""
    data = _verified(source, digest, None)
    manifest = documents.parse_manifest(data, f"{source.path}: manifest")
    config_data = read_blob(source, manifest.config)
    config = documents.parse_config(config_data, f"{source.path}: config")
    if len(config.diff_ids) != len(manifest.layers):
        raise MalformedManifest(
            f"{source.path}: config.rootfs.diff_ids has {len(config.diff_ids)} entries, "
            f"manifest.layers {len(manifest.layers)}"
        )
    pairs = zip(config.diff_ids, manifest.layers, strict=True)
    layers = [Layer(i, d, source.open(blob_name(d.digest))) for i, d in pairs]
    return Found(data, config_data, tuple(layers))


def read_docker(source: Source, reference: str) -> Found:
    """Returns the image that `docker save` stored under `reference`, or the only one.

    Source: Docker image-spec v1.2, "Combined Image JSON + Filesystem Changeset Format".
    """
    data = read_document(source, "manifest.json", documents.MAX_DOCUMENT_BYTES)
    if data is None:
        raise MalformedManifest(f"{source.path}: neither manifest.json nor an OCI layout")
    where = f"{source.path}: manifest.json"
    entries = documents.load_any(data, where)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise MalformedManifest(f"{where}: not a list of objects")
    chosen = _choose_docker(entries, reference, source.path, where)
    config_name = documents.typed(chosen, "Config", str, where)
    config_data = read_document(source, config_name, documents.MAX_DOCUMENT_BYTES)
    if config_data is None:
        raise MalformedManifest(f"{where}: Config {config_name[:100]!r} is missing")
    diff_ids = documents.parse_config(config_data, f"{source.path}: config").diff_ids
    names = documents.typed(chosen, "Layers", list, where, [])
    if len(names) != len(diff_ids) or len(names) > documents.MAX_LAYERS:
        raise MalformedManifest(f"{where}: {len(names)} Layers, {len(diff_ids)} diff ids")
    layers: list[Layer] = []
    for diff_id, name in zip(diff_ids, names, strict=True):
        member = source.open(name) if isinstance(name, str) else None
        if member is None:
            raise MalformedManifest(f"{where}: layer {str(name)[:100]!r} is missing")
        layers.append(Layer(diff_id, None, member))
    return Found(None, config_data, tuple(layers))


def blob_name(digest: Digest) -> str:
    """Returns a blob's path inside a layout."""
    return f"blobs/sha256/{digest[7:]}"


def read_blob(source: Source, descriptor: Descriptor) -> bytes:
    """Returns a document by its descriptor, size and digest verified."""
    return _verified(source, descriptor.digest, descriptor.size_bytes)


def _verified(source: Source, digest: Digest, size_bytes: int | None) -> bytes:
    data = read_document(source, blob_name(digest), documents.MAX_DOCUMENT_BYTES)
    if data is None:
        raise MalformedManifest(f"{source.path}: blob {digest} is missing")
    if size_bytes is not None and len(data) != size_bytes:
        raise SizeMismatch(f"{digest} has {len(data)} bytes, its descriptor says {size_bytes}")
    if (actual := "sha256:" + hashlib.sha256(data).hexdigest()) != digest:
        raise DigestMismatch(f"{source.path}: blob {digest} has the digest {actual}")
    return data


def _top(source: Source) -> list[Descriptor]:
    data = read_document(source, "index.json", documents.MAX_DOCUMENT_BYTES)
    if data is None:
        raise ImageNotFound(f"{source.path} is not an OCI image layout (no index.json)")
    return documents.parse_index(data, f"{source.path}: index.json")


def _names(descriptor: Descriptor) -> list[str]:
    found = dict(descriptor.annotations)
    return [found[key] for key in (REF_NAME, CONTAINERD_NAME) if key in found]


def _offer(descriptors: list[Descriptor]) -> str:
    names = sorted({name for d in descriptors for name in _names(d)})
    return "it has " + (", ".join(names)[:300] or "no named images")


def _choose_docker(
    entries: list[dict[str, object]], reference: str, path: str, where: str
) -> dict[str, object]:
    if reference.startswith("@") and reference[1:].isdigit() and len(reference) < 6:
        if int(reference[1:]) < len(entries):
            return entries[int(reference[1:])]
        raise ImageNotFound(f"{path} has no image {reference}")
    if not reference:
        if len(entries) == 1:
            return entries[0]
        raise ImageNotFound(f"{path} has {len(entries)} images", hint="append :NAME:TAG or :@INDEX")
    wanted = familiar(reference)
    for entry in entries:
        for tag in documents.typed(entry, "RepoTags", list, where, []):
            with suppress(InvalidReference):
                if isinstance(tag, str) and familiar(tag) == wanted:
                    return entry
    raise ImageNotFound(f"{path} has no image {reference!r}")
