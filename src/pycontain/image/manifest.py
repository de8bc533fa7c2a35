"""Image documents (index, manifest, config) parsed as what they are: hostile JSON.

Every type is checked, every error names the JSON path. Keys that occur twice are refused, since
readers disagree on which one counts. Nothing is used as a path before `check_digest` saw it
(CVE-2024-3727).

Source: OCI image-spec 1.1 (image-index.md, manifest.md, config.md); Docker image manifest v2.2.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pycontain.errors import MalformedManifest
from pycontain.oci import Descriptor, Digest, ImageConfig, Platform
from pycontain.values import frozen

MAX_DOCUMENT_BYTES = 4 << 20
MAX_LAYERS = 500  # overlayfs's own limit
MAX_DESCRIPTORS = 1000
MAX_BLOB_BYTES = 1 << 42

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
INDEXES, MANIFESTS, CONFIGS = (
    (INDEX, DOCKER_INDEX),
    (MANIFEST, DOCKER_MANIFEST),
    (CONFIG, DOCKER_CONFIG),
)
_DOCKER_LAYER = "application/vnd.docker.image.rootfs."
_OCI_LAYER = "application/vnd.oci.image.layer."

_T = TypeVar("_T")


@frozen
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@frozen
class Config:
    """What a config document says; `diff_ids` are the inflated layers' digests, lowest first."""

    image: ImageConfig
    diff_ids: tuple[Digest, ...]


def check_digest(text: object, where: str) -> Digest:
    """Returns `text` as a digest: exactly sha256 and 64 lower-case hex digits."""
    if (
        isinstance(text, str)
        and len(text) == 71
        and text.startswith("sha256:")
        and not text[7:].strip("0123456789abcdef")
    ):
        return Digest(text)
    raise MalformedManifest(f"{where}: not a sha256 digest: {str(text)[:100]!r}")


def load(data: bytes, what: str) -> dict[str, Any]:
    """Returns the JSON object in `data`; `what` names the document in errors."""
    value = load_any(data, what)
    if not isinstance(value, dict):
        raise MalformedManifest(f"{what}: not a JSON object")
    return value


def load_any(data: bytes, what: str) -> object:
    """Returns the JSON value in `data`; duplicate keys and NaN are errors."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MalformedManifest(f"{what}: larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        text = data.decode("utf-8")
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedManifest(f"{what}: nested too deep") from None
    except ValueError as e:
        raise MalformedManifest(f"{what}: not valid JSON: {str(e)[:100]}") from None
    return value


def parse_index(data: bytes, what: str = "index") -> list[Descriptor]:
    """Returns the descriptors of an index or a Docker manifest list, in order."""
    document = load(data, what)
    if "layers" in document or "config" in document:
        # One document that is both an index and a manifest: CVE-2021-41190.
        raise MalformedManifest(f"{what}: both an index and a manifest")
    _check_kind(document, INDEXES, what)
    entries = typed(document, "manifests", list, what, [])
    if len(entries) > MAX_DESCRIPTORS:
        raise MalformedManifest(f"{what}: more than {MAX_DESCRIPTORS} manifests")
    return [parse_descriptor(e, f"{what}.manifests[{i}]") for i, e in enumerate(entries)]


def parse_manifest(data: bytes, what: str = "manifest") -> Manifest:
    """Returns the config and layers of an image manifest; refuses schema 1 and artifacts."""
    document = load(data, what)
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise MalformedManifest(
            f"{what}: Docker schema 1 is not supported", hint="push the image again with any tool"
        )
    if "manifests" in document:
        raise MalformedManifest(f"{what}: both an index and a manifest")
    _check_kind(document, MANIFESTS, what)
    config = parse_descriptor(typed(document, "config", dict, what), f"{what}.config")
    artifact = typed(document, "artifactType", str, what, "")
    if config.media_type not in CONFIGS:
        raise MalformedManifest(
            f"{what}: an artifact ({(artifact or config.media_type)[:100]}), not a container image"
        )
    entries = typed(document, "layers", list, what)
    if len(entries) > MAX_LAYERS:
        raise MalformedManifest(f"{what}: more than {MAX_LAYERS} layers")
    layers = [parse_descriptor(e, f"{what}.layers[{i}]") for i, e in enumerate(entries)]
    for i, layer in enumerate(layers):
        if "encrypted" in layer.media_type or not layer.media_type.startswith(
            (_OCI_LAYER, _DOCKER_LAYER)
        ):
            raise MalformedManifest(
                f"{what}.layers[{i}].mediaType: {layer.media_type[:100]!r} is not a layer"
            )
    return Manifest(config, tuple(layers))


def parse_descriptor(value: object, where: str) -> Descriptor:
    """Returns one descriptor."""
    if not isinstance(value, dict):
        raise MalformedManifest(f"{where}: not an object")
    size = typed(value, "size", int, where)
    if isinstance(size, bool) or not 0 <= size <= MAX_BLOB_BYTES:
        raise MalformedManifest(f"{where}.size: {size} is out of range")
    platform = typed(value, "platform", dict, where, None)
    return Descriptor(
        media_type=typed(value, "mediaType", str, where, ""),
        digest=check_digest(value.get("digest"), f"{where}.digest"),
        size_bytes=size,
        platform=None if platform is None else _platform(platform, f"{where}.platform"),
        annotations=tuple(_pairs(value, "annotations", where)),
    )


def parse_config(data: bytes, what: str = "config") -> Config:
    """Returns what an image config asks for and its layers' diff ids."""
    document = load(data, what)
    rootfs = typed(document, "rootfs", dict, what)
    if rootfs.get("type") != "layers":
        raise MalformedManifest(f'{what}.rootfs.type: not "layers"')
    ids = typed(rootfs, "diff_ids", list, f"{what}.rootfs", [])
    inner = typed(document, "config", dict, what, {})
    where = f"{what}.config"
    image = ImageConfig(
        user=_text(inner, "User", where),
        env=_texts(inner, "Env", where),
        entrypoint=_texts(inner, "Entrypoint", where),
        cmd=_texts(inner, "Cmd", where),
        working_dir=_text(inner, "WorkingDir", where),
        labels=tuple(_pairs(inner, "Labels", where)),
        stop_signal=_text(inner, "StopSignal", where),
        volumes=_keys(inner, "Volumes", where),
        exposed_ports=_keys(inner, "ExposedPorts", where),
        platform=_platform(document, what),
        created=_text(document, "created", what),
    )
    diff_ids = [check_digest(d, f"{what}.rootfs.diff_ids[{i}]") for i, d in enumerate(ids)]
    return Config(image, tuple(diff_ids))


def typed(value: dict[str, Any], key: str, kind: type[_T], where: str, default: Any = ...) -> _T:
    """Returns `value[key]`, a `kind`; null counts as missing, `default` makes it optional."""
    found = value.get(key)
    if found is None:
        if default is ...:
            raise MalformedManifest(f"{where}.{key}: missing")
        return default  # type: ignore[no-any-return]
    if not isinstance(found, kind):
        raise MalformedManifest(f"{where}.{key}: not a {kind.__name__}")
    return found


def _check_kind(document: dict[str, Any], kinds: tuple[str, ...], what: str) -> None:
    version = document.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        raise MalformedManifest(f"{what}.schemaVersion: {str(version)[:20]}, not 2")
    media_type = typed(document, "mediaType", str, what, "")
    if media_type and media_type not in kinds:
        raise MalformedManifest(f"{what}.mediaType: {media_type[:100]!r} is not {kinds[0]}")


def _clean(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise MalformedManifest(f"{where}: not a string")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise MalformedManifest(f"{where}: NUL or a lone surrogate")
    return text


def _text(value: dict[str, Any], key: str, where: str) -> str:
    return _clean(typed(value, key, str, where, ""), f"{where}.{key}")


def _texts(value: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    items = typed(value, key, list, where, [])
    return tuple(_clean(item, f"{where}.{key}[{i}]") for i, item in enumerate(items))


def _pairs(value: dict[str, Any], key: str, where: str) -> list[tuple[str, str]]:
    items = typed(value, key, dict, where, {})
    at = f"{where}.{key}"
    return [(_clean(k, at), _clean(v, f"{at}[{k[:50]!r}]")) for k, v in items.items()]


def _keys(value: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    return tuple(_clean(k, f"{where}.{key}") for k in typed(value, key, dict, where, {}))


def _platform(value: dict[str, Any], where: str) -> Platform:
    return Platform(
        os=_text(value, "os", where),
        architecture=_text(value, "architecture", where),
        variant=_text(value, "variant", where) or None,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def config_document(config: ImageConfig, diff_ids: tuple[Digest, ...]) -> bytes:
    """Returns a config document that says `config`, the same bytes for the same input."""
    from .platforms import host

    platform = config.platform or host()
    inner: dict[str, object] = {
        "User": config.user,
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.working_dir,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
        "Volumes": {path: {} for path in config.volumes},
        "ExposedPorts": {port: {} for port in config.exposed_ports},
    }
    document: dict[str, object] = {
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {key: value for key, value in inner.items() if value},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    if platform.variant:
        document["variant"] = platform.variant
    if config.created:
        document["created"] = config.created
    return json.dumps(document, sort_keys=True).encode()
