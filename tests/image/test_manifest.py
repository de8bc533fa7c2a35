"""Documents: every wrong type is an error that names its place."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.errors import MalformedManifest
from pycontain.image.manifest import parse_config, parse_index, parse_manifest
from pycontain.oci import Digest

ID = "sha256:" + "0" * 64
CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "amd64",
    "config": {
        "User": "1",
        "Env": ["A=b"],
        "Entrypoint": ["/e"],
        "Cmd": None,
        "Labels": {"k": "v"},
        "Volumes": {"/v": {}},
        "ExposedPorts": {"80/tcp": {}},
    },
    "rootfs": {"type": "layers", "diff_ids": [ID]},
}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": ID, "size": 1}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": ID, "size": 1},
    "layers": [LAYER],
}


def changed(document: dict[str, Any], path: str, value: object) -> bytes:
    copy = json.loads(json.dumps(document))
    at = copy
    *parents, last = path.split(".")
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at[name]
    at[int(last) if isinstance(at, list) else last] = value
    return json.dumps(copy).encode()


def test_config() -> None:
    """What a config says; null is nothing."""
    config = parse_config(json.dumps(CONFIG).encode())
    assert config.diff_ids == (Digest(ID),)
    image = config.image
    assert (image.user, image.env, image.entrypoint, image.cmd) == ("1", ("A=b",), ("/e",), ())
    assert (image.labels, image.volumes) == ((("k", "v"),), ("/v",))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config", []),
        ("config.User", 0),
        ("config.User", "a\0b"),
        ("config.User", "\ud800"),
        ("config.Env", "A=b"),
        ("config.Env", [1]),
        ("config.Entrypoint", {"0": "x"}),
        ("config.Labels", {"k": 1}),
        ("config.Volumes", ["/v"]),
        ("rootfs", None),
        ("rootfs.type", "other"),
        ("rootfs.diff_ids", ["sha256:" + "0" * 63]),
        ("rootfs.diff_ids", ["sha256:" + "A" * 64]),
        ("rootfs.diff_ids", ["sha256:" + "0" * 64 + "\n"]),
        ("os", ["linux"]),
    ],
)
def test_hostile_config(path: str, value: object) -> None:
    """The error names the JSON path."""
    with pytest.raises(MalformedManifest, match=path.replace(".", r"\.")):
        parse_config(changed(CONFIG, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", 1),
        ("schemaVersion", True),
        ("mediaType", "application/vnd.oci.image.index.v1+json"),
        ("manifests", []),
        ("config.mediaType", "application/vnd.cncf.helm.config.v1+json"),
        ("config.digest", "sha512:" + "0" * 128),
        ("config.digest", "../../etc/passwd"),
        ("layers", {}),
        ("layers", [LAYER] * 501),
        ("layers.0", "x"),
        ("layers.0.size", -1),
        ("layers.0.size", True),
        ("layers.0.size", 1.5),
        ("layers.0.size", 2**63),
        ("layers.0.digest", None),
        ("layers.0.mediaType", "application/vnd.oci.image.layer.v1.tar+encrypted"),
        ("layers.0.mediaType", "text/plain"),
    ],
)
def test_hostile_manifest(path: str, value: object) -> None:
    """Wrong types, negative sizes, other kinds of documents and digests are refused."""
    with pytest.raises(MalformedManifest):
        parse_manifest(changed(MANIFEST, path, value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"a":NaN}',
        b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}',
        b'{"schemaVersion":2,"manifests":[],"layers":[]}',
        b'{"schemaVersion":2,"manifests":[]}' + b" " * (4 << 20),
        b'{"schemaVersion":' + b"9" * 5000 + b"}",
    ],
)
def test_hostile_json(data: bytes) -> None:
    """What is not plain, bounded JSON with unique keys is refused."""
    with pytest.raises(MalformedManifest):
        parse_index(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["config", "config.Env", "config.Labels", "rootfs.diff_ids", "os", "rootfs"]),
    JSON,
)
def test_anything_in_a_config_is_parsed_or_refused(path: str, value: Any) -> None:
    """No value gives another error than MalformedManifest."""
    with contextlib.suppress(MalformedManifest):
        parse_config(changed(CONFIG, path, value))
