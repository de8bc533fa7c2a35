"""Deletes what no image and no container refers to."""

from __future__ import annotations

import os
from contextlib import suppress

from pycontain.errors import ImageNotFound
from pycontain.oci import Digest
from pycontain.values import frozen

from . import manifest as documents
from .content import ContentStore, Row, locked
from .ingest import Places, chain_ids, clear_staging, layer_directory
from .removal import remove_path
from .snapshots import image_of


@frozen
class Pruned:
    """What a prune removed; `freed_bytes` counts blobs and unpacked files."""

    images: tuple[Digest, ...]
    layers: int
    freed_bytes: int


def in_use(places: Places) -> set[Digest]:
    """Returns the images that containers were prepared from."""
    used: set[Digest] = set()
    with suppress(FileNotFoundError):
        for name in os.listdir(f"{places.root}/containers"):
            digest = image_of(f"{places.root}/containers/{name}")
            if digest is not None:
                used.add(digest)
    return used


def collect(places: Places, content: ContentStore, *, untagged: bool) -> Pruned:
    """Unreachable blobs and layers are gone, with `untagged` images without a name before that.

    Waits until no import runs, and lets none begin meanwhile.
    """
    places.create()
    content.create()
    with locked(f"{places.root}/locks/store"):
        clear_staging(places)
        used = in_use(places)
        dropped: list[Digest] = []

        def change(rows: dict[Digest, Row]) -> None:
            for digest, row in list(rows.items()):
                if untagged and not row.names and digest not in used:
                    dropped.append(digest)
                    del rows[digest]

        rows = content.update(change).rows
        blobs: set[str] = set()
        layers: set[str] = set()
        for digest in {*rows, *used}:
            _reach(places, content, digest, blobs, layers)
        freed, count = _drop_layers(places, layers)
        return Pruned(tuple(dropped), count, freed + _drop_blobs(places, blobs))


def _reach(
    places: Places, content: ContentStore, digest: Digest, blobs: set[str], layers: set[str]
) -> None:
    """Adds what the image needs to the names of `blobs` and `layers`."""
    try:
        manifest = documents.parse_manifest(content.read(digest))
        config = documents.parse_config(content.read(manifest.config.digest))
    except ImageNotFound:
        return  # "rootfs:" images are not in the store
    blobs |= {digest[7:], manifest.config.digest[7:], *(d.digest[7:] for d in manifest.layers)}
    for chain, diff_id in zip(chain_ids(config.diff_ids), config.diff_ids, strict=True):
        if directory := layer_directory(places, chain, diff_id):
            layers.add(os.path.basename(directory))


def _drop_layers(places: Places, keep: set[str]) -> tuple[int, int]:
    freed = count = 0
    for name in os.listdir(f"{places.root}/layers"):
        if name in keep:
            continue
        path = places.layer(name)
        for directory, _, files in os.walk(path):
            for file in files:
                with suppress(OSError):
                    freed += os.lstat(os.path.join(directory, file)).st_size
        # By rename first: a layer is there whole or not at all, also after a crash.
        grave = f"{places.staging}/removed-{os.urandom(6).hex()}"
        os.rename(path, grave)
        remove_path(grave)
        count += 1
    return freed, count


def _drop_blobs(places: Places, keep: set[str]) -> int:
    freed = 0
    directory = f"{places.images}/blobs/sha256"
    for name in os.listdir(directory):
        if name not in keep:
            path = f"{directory}/{name}"
            freed += os.lstat(path).st_size
            os.unlink(path)
    return freed
