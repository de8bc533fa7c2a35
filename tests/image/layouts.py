"""OCI layouts and `docker save` archives made by hand, right or wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tars import END, file, symlink

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    """The digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(*parts: bytes) -> bytes:
    """An uncompressed layer."""
    return b"".join(parts) + END


def config(layers: Sequence[bytes], **inner: object) -> bytes:
    """A config document for uncompressed layers."""
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
    }
    return json.dumps(document).encode()


class Layout:
    """An OCI image layout in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.entries: list[dict[str, Any]] = []
        self.write()

    def write(self) -> None:
        """index.json says what `entries` hold."""
        index = {"schemaVersion": 2, "manifests": self.entries}
        (self.path / "index.json").write_text(json.dumps(index))

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Stores a blob and returns its descriptor."""
        name = digest(data)
        (self.path / "blobs/sha256" / name[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": name, "size": len(data)}

    def manifest(
        self, layers: Sequence[bytes], config_data: bytes | None = None, **changes: object
    ) -> dict[str, Any]:
        """Stores an image of gzip layers and returns its manifest's descriptor."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(config_data or config(layers), CONFIG),
            "layers": [self.blob(gzip.compress(data, mtime=0), LAYER + "+gzip") for data in layers],
            **changes,
        }
        return self.blob(json.dumps(document).encode(), MANIFEST)

    def add(self, tag: str, layers: Sequence[bytes], **changes: Any) -> str:
        """An image is in the layout under `tag`; returns its digest."""
        descriptor = self.manifest(layers, **changes)
        if tag:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.entries.append(descriptor)
        self.write()
        return str(descriptor["digest"])

    def as_tar(self) -> bytes:
        """The layout as one tar."""
        files = [p for p in sorted(self.path.rglob("*")) if p.is_file()]
        return layer(*(file(str(p.relative_to(self.path)).encode(), p.read_bytes()) for p in files))


def docker_archive(layers: Sequence[bytes], tags: Sequence[str] = ("app:1",)) -> bytes:
    """What old `docker save` wrote: a directory per layer, a repeated layer as a link."""
    config_data = config(layers)
    parts: list[bytes] = []
    names: list[str] = []
    first: dict[bytes, str] = {}
    for number, data in enumerate(layers):
        name = f"{number:064x}/layer.tar"
        if data in first:
            parts.append(symlink(name.encode(), f"../{first[data]}".encode()))
        else:
            first[data] = name
            parts.append(file(name.encode(), data))
        names.append(name)
    config_name = digest(config_data)[7:] + ".json"
    manifest = [{"Config": config_name, "RepoTags": list(tags), "Layers": names}]
    parts.append(file(config_name.encode(), config_data))
    parts.append(file(b"manifest.json", json.dumps(manifest).encode()))
    return layer(*parts)
