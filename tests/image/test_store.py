"""The image store: every source ends as verified, unpacked layers, or as nothing at all."""

from __future__ import annotations

import gzip
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from layouts import CONFIG, INDEX, LAYER, MANIFEST, Layout, config, digest, docker_archive, layer
from tars import directory, file

from pycontain.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidReference,
    MalformedManifest,
    SizeMismatch,
    UnsafeLayer,
    UntrustedContent,
    WrongState,
)
from pycontain.image import ImageStore, snapshots
from pycontain.oci import ImageConfig

BASE = layer(directory(b"."), directory(b"etc"), file(b"etc/name", b"base"))
TOP = layer(directory(b"."), directory(b"etc"), file(b"etc/.wh.name", b""), file(b"app", b"top"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "data"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def left(root: Path) -> set[str]:
    """What is below a data root apart from its own fixed directories and locks."""
    found = {str(p.relative_to(root)) for p in root.rglob("*")}
    fixed = {"images", "images/blobs", "images/blobs/sha256", "images/oci-layout", "layers"}
    return found - fixed - {"staging", "locks", "locks/store", "images/index.lock"}


# ---- sources ---------------------------------------------------------------------------------


def test_opening_touches_nothing(store: ImageStore, tmp_path: Path) -> None:
    """A store without images needs no directory."""
    assert store.ls() == []
    assert not (tmp_path / "data").exists()


def test_oci_layout(store: ImageStore, layout: Layout, no_fd_left: None) -> None:
    """oci:DIR:TAG gives the layers in order, the config, and the manifest's digest as id."""
    wanted = layout.add("v1", [BASE, TOP], config_data=config([BASE, TOP], Cmd=["/app"]))
    image = store.resolve(f"oci:{layout.path}:v1")
    assert image.id == wanted
    assert image.config.cmd == ("/app",)
    base, top = map(Path, image.layers)
    assert (base / "etc/name").read_text() == "base"
    assert stat.S_ISCHR((top / "etc/name").lstat().st_mode)
    assert image.size_bytes == len("basetop")
    assert store.resolve(f"oci:{layout.path}:v1") == image


def test_layer_that_takes_after_another_is_not_shared(store: ImageStore, layout: Layout) -> None:
    """A layer whose implied directories look as below is unpacked once per what is below."""
    implied = layer(file(b"d/f"))
    layout.add("", [implied])
    store.resolve(f"oci:{layout.path}")
    for tag, mode in (("a", 0o700), ("b", 0o750)):
        layout.add(tag, [layer(directory(b"d", mode)), implied])
        top = Path(store.resolve(f"oci:{layout.path}:{tag}").layers[1])
        assert (top / "d").stat().st_mode & 0o777 == mode


def test_changed_layout_is_read_again(store: ImageStore, layout: Layout) -> None:
    """The same argument is another image once the layout's index changed."""
    layout.add("v1", [BASE])
    first = store.resolve(f"oci:{layout.path}:v1")
    layout.entries.clear()
    layout.add("v1", [TOP])
    assert store.resolve(f"oci:{layout.path}:v1").id != first.id


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_oci_archive(store: ImageStore, layout: Layout, tmp_path: Path, compress: Any) -> None:
    """oci-archive:FILE is the layout as a tar, also a compressed one."""
    wanted = layout.add("v1", [BASE, TOP])
    archive = tmp_path / "a.tar"
    archive.write_bytes(compress(layout.as_tar()))
    assert store.resolve(f"oci-archive:{archive}:v1").id == wanted
    assert store.import_archive(str(archive), "app").names == ("app:latest",)


def test_docker_archive(store: ImageStore, tmp_path: Path) -> None:
    """docker-archive:FILE reads what `docker save` wrote, links between layers too."""
    archive = tmp_path / "d.tar"
    archive.write_bytes(docker_archive([BASE, TOP, BASE]))
    image = store.resolve(f"docker-archive:{archive}:app:1")
    assert [Path(p).parent.name for p in image.layers] == [digest(d)[7:] for d in (BASE, TOP, BASE)]
    assert image.names == ()  # what an archive calls its images is a claim
    assert store.resolve(f"docker-archive:{archive}").id == image.id


@pytest.mark.parametrize("compress", ["", "gzip", "xz", "bzip2", "zstd"])
def test_rootfs_tar(store: ImageStore, tmp_path: Path, compress: str) -> None:
    """A plain tar is an image of one layer, whatever compresses it."""
    import bz2
    import lzma

    codecs: dict[str, Any] = {"": bytes, "gzip": gzip.compress, "xz": lzma.compress}
    codecs["bzip2"] = bz2.compress
    if compress == "zstd":
        codecs["zstd"] = pytest.importorskip("backports.zstd", reason="needs zstd").compress
    path = tmp_path / "root.tar"
    path.write_bytes(codecs[compress](BASE))
    image = store.import_rootfs_tar(str(path), "base:1", ImageConfig(cmd=("/bin/sh",)))
    assert (image.names, image.config.cmd) == (("base:1",), ("/bin/sh",))
    assert (Path(image.layers[0]) / "etc/name").read_text() == "base"
    assert ImageStore(str(tmp_path / "data")).resolve("base:1") == image


def test_rootfs_directory(store: ImageStore, tmp_path: Path) -> None:
    """rootfs:DIR is used where it is; nothing is stored."""
    image = store.resolve(f"rootfs:{tmp_path}")
    assert image.rootfs_dir == str(tmp_path)
    assert not (tmp_path / "data").exists()


def test_embedded_image(store: ImageStore, tmp_path: Path) -> None:
    """pycontain/hello is there without network or file, an executable and empty mount points."""
    image = store.resolve("pycontain/hello")
    root = Path(image.layers[0])
    assert image.config.entrypoint == ("/hello",)
    assert (root / "hello").stat().st_mode & 0o777 == 0o755
    assert {p.name for p in root.iterdir()} == {"dev", "etc", "hello", "proc", "sys", "tmp"}
    assert ImageStore(str(tmp_path / "data")).resolve("pycontain/hello:latest") == image


def test_platform_is_chosen_from_nested_indexes(store: ImageStore, layout: Layout) -> None:
    """Of several platforms the host's is taken, attestations are not."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    if machine is None:
        pytest.skip("needs x86_64 or aarch64")
    ours = layout.manifest([BASE])
    other = layout.manifest([TOP])
    ours["platform"] = {"os": "linux", "architecture": machine}
    other["platform"] = {"os": "unknown", "architecture": "unknown"}
    inner = json.dumps({"schemaVersion": 2, "manifests": [other, ours]}).encode()
    layout.entries.append(layout.blob(inner, INDEX))
    layout.write()
    assert store.resolve(f"oci:{layout.path}").id == ours["digest"]
    ours["platform"]["architecture"] = "m68k"
    inner = json.dumps({"schemaVersion": 2, "manifests": [other, ours]}).encode()
    layout.entries[:] = [layout.blob(inner, INDEX)]
    layout.write()
    with pytest.raises(ImageNotFound, match="linux/m68k"):
        store.resolve(f"oci:{layout.path}")


# ---- hostile sources -------------------------------------------------------------------------


def wrong_layer_bytes(layout: Layout) -> None:
    layout.add("", [BASE])
    name = digest(gzip.compress(BASE, mtime=0))[7:]
    changed = bytearray((layout.path / "blobs/sha256" / name).read_bytes())
    changed[-9] ^= 1
    (layout.path / "blobs/sha256" / name).write_bytes(changed)


def longer_layer(layout: Layout) -> None:
    layout.add("", [BASE])
    name = digest(gzip.compress(BASE, mtime=0))[7:]
    with (layout.path / "blobs/sha256" / name).open("ab") as blob:
        blob.write(b"more")


def wrong_manifest_bytes(layout: Layout) -> None:
    name = layout.add("", [BASE])[7:]
    blob = layout.path / "blobs/sha256" / name
    blob.write_bytes(blob.read_bytes() + b" ")


def wrong_diff_id(layout: Layout) -> None:
    layout.add("", [BASE], config_data=config([TOP]))


def diff_id_of_another_layer(layout: Layout) -> None:
    """C12: a layer that claims to be one that is known."""
    layout.add("", [BASE, TOP], config_data=config([BASE, BASE]))


def missing_layer(layout: Layout) -> None:
    layout.add("", [BASE])
    (layout.path / "blobs/sha256" / digest(gzip.compress(BASE, mtime=0))[7:]).unlink()


def hostile_layer(layout: Layout) -> None:
    layout.add("", [BASE, layer(file(b"ok"), file(b"../../escape"))])


def digest_as_path(layout: Layout) -> None:
    layout.entries.append({"mediaType": MANIFEST, "digest": "sha256:../../../x", "size": 2})
    layout.write()


def two_kinds(layout: Layout) -> None:
    layout.add("", [BASE], manifests=[])


def schema_1(layout: Layout) -> None:
    layout.add("", [BASE], schemaVersion=1)


def artifact(layout: Layout) -> None:
    layout.add("", [BASE], config=layout.blob(b"{}", "application/vnd.oci.empty.v1+json"))


def no_layers(layout: Layout) -> None:
    layout.add("", [])


def index_in_itself(layout: Layout) -> None:
    entry: dict[str, Any] = layout.manifest([BASE])
    for _ in range(6):
        entry = layout.blob(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(), INDEX)
    layout.entries.append(entry)
    layout.write()


def fifo_as_index(layout: Layout) -> None:
    (layout.path / "index.json").unlink()
    os.mkfifo(layout.path / "index.json")


HOSTILE: dict[Any, type[Exception]] = {
    wrong_layer_bytes: UntrustedContent,
    longer_layer: SizeMismatch,
    wrong_manifest_bytes: UntrustedContent,
    wrong_diff_id: DigestMismatch,
    diff_id_of_another_layer: DigestMismatch,
    missing_layer: MalformedManifest,
    hostile_layer: UnsafeLayer,
    digest_as_path: MalformedManifest,
    two_kinds: MalformedManifest,
    schema_1: MalformedManifest,
    artifact: MalformedManifest,
    no_layers: MalformedManifest,
    index_in_itself: MalformedManifest,
    fifo_as_index: MalformedManifest,
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_layout_leaves_nothing(
    make: Any, store: ImageStore, layout: Layout, tmp_path: Path, no_fd_left: None
) -> None:
    """A layout that lies is an error, and nothing of it is in the store."""
    make(layout)
    with pytest.raises(HOSTILE[make]):
        store.resolve(f"oci:{layout.path}")
    assert left(tmp_path / "data") == set()


def test_known_blob_does_not_vouch_for_a_claim(store: ImageStore, layout: Layout) -> None:
    """C12: what is unpacked and what is claimed are compared even if both are known already."""
    layout.add("good", [BASE, TOP])
    store.resolve(f"oci:{layout.path}:good")
    layout.add("bad", [BASE, TOP], config_data=config([TOP, BASE]))
    image = store.resolve(f"oci:{layout.path}:bad")
    # Layers come by the config's diff ids, each of which we computed ourselves.
    assert [Path(p).parent.name for p in image.layers] == [digest(TOP)[7:], digest(BASE)[7:]]


def test_symlinked_blob_outside_is_refused(
    store: ImageStore, layout: Layout, tmp_path: Path
) -> None:
    """A layout's links stay inside the layout."""
    layout.add("", [BASE])
    (layout.path / "index.json").rename(tmp_path / "index.json")
    (layout.path / "index.json").symlink_to(tmp_path / "index.json")
    with pytest.raises(OSError, match="openat2"):
        store.resolve(f"oci:{layout.path}")


def test_archive_member_twice_is_refused(store: ImageStore, tmp_path: Path) -> None:
    """C6: two members of one name would mean one thing to us and another to the next reader."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(layer(file(b"index.json", b"{}"), file(b"index.json", b"{ }")))
    with pytest.raises(UnsafeLayer):
        store.import_archive(str(archive))


@pytest.mark.parametrize("size", [100, 1000, 2048])
def test_cut_archive_is_refused(store: ImageStore, tmp_path: Path, size: int) -> None:
    """An archive that ends early is an error."""
    archive = tmp_path / "d.tar"
    archive.write_bytes(docker_archive([BASE])[:size])
    with pytest.raises(UntrustedContent):
        store.resolve(f"docker-archive:{archive}")


# ---- names -----------------------------------------------------------------------------------


def test_names_and_ids(store: ImageStore, layout: Layout) -> None:
    """An image answers to its names in any spelling, its id and a unique start of it."""
    layout.add("v1", [BASE])
    image = store.import_archive(str(layout.path), "debian:12")
    for spelling in ("debian:12", "docker.io/library/debian:12", image.id, image.id[7:19]):
        assert store.resolve(spelling) == image
    assert store.tag("debian:12", "debian").names == ("debian:12", "debian:latest")
    assert store.resolve("debian").id == image.id
    with pytest.raises(ImageNotFound, match="similar: debian:12"):
        store.resolve("debain:12")


def test_tag_moves(store: ImageStore, layout: Layout) -> None:
    """A name belongs to one image only."""
    layout.add("a", [BASE])
    layout.add("b", [TOP])
    first = store.import_archive(str(layout.path), "x", ref="a")
    second = store.import_archive(str(layout.path), "x", ref="b")
    assert store.resolve("x").id == second.id
    assert store.resolve(first.id).names == ()


def test_several_images_need_a_tag(store: ImageStore, layout: Layout) -> None:
    """Which of several images is meant is not guessed; the hint lists them."""
    layout.add("a", [BASE])
    layout.add("b", [TOP])
    with pytest.raises(ImageNotFound, match="a, b"):
        store.resolve(f"oci:{layout.path}")


@pytest.mark.parametrize("argument", ["", "UPPER", "a b", "-x", "x:", "oci:", "a/../b", "x:a/b"])
def test_no_reference(store: ImageStore, argument: str) -> None:
    """What no grammar accepts is an InvalidReference that lists the forms."""
    with pytest.raises(InvalidReference):
        store.resolve(argument)


def test_inspect(store: ImageStore, layout: Layout) -> None:
    """inspect shows the documents as they are."""
    layout.add("", [BASE], config_data=config([BASE], Labels={"a": "b"}))
    store.import_archive(str(layout.path), "x")
    known: Any = store.inspect("x")
    assert known["config"]["config"]["Labels"] == {"a": "b"}
    assert known["manifest"]["config"]["mediaType"] == CONFIG
    assert known["manifest"]["layers"][0]["mediaType"] == LAYER + "+gzip"


# ---- removal, crashes, other processes -------------------------------------------------------


def test_remove_keeps_shared_layers(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    """An image goes with its last name; layers of others stay."""
    layout.add("a", [BASE])
    layout.add("b", [BASE, TOP])
    store.import_archive(str(layout.path), "a", ref="a")
    store.import_archive(str(layout.path), "b", ref="b")
    store.tag("b", "c")
    store.remove("b")
    assert store.resolve("c").layers
    store.remove("c")
    assert [image.names for image in store.ls()] == [("a:latest",)]
    assert os.listdir(tmp_path / "data/layers") == [digest(BASE)[7:]]
    store.remove("a")
    assert left(tmp_path / "data") == {"images/index.json"}


def test_container_keeps_its_image(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    """What a container was prepared from survives remove and prune."""
    layout.add("", [BASE])
    image = store.import_archive(str(layout.path), "x")
    container = str(tmp_path / "data/containers/c1")
    snapshots.prepare(container, image)
    with pytest.raises(WrongState):
        store.remove("x")
    store.remove("x", force=True)
    assert store.prune().layers == 0
    assert os.path.isdir(image.layers[0])
    snapshots.remove(container)
    assert store.prune().layers == 1
    assert not os.path.exists(image.layers[0])


def test_prune_takes_untagged_images(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    """Images without a name go, those with one stay."""
    layout.add("a", [BASE])
    layout.add("b", [TOP])
    untagged = store.resolve(f"oci:{layout.path}:a")
    store.import_archive(str(layout.path), "b", ref="b")
    pruned = store.prune()
    assert (pruned.images, pruned.layers) == ((untagged.id,), 1)
    assert pruned.freed_bytes > 0
    assert [image.names for image in store.ls()] == [("b:latest",)]


def test_lost_layer_is_made_again(store: ImageStore, layout: Layout) -> None:
    """A layer directory that somebody deleted comes back from its blob."""
    layout.add("", [BASE])
    image = store.import_archive(str(layout.path), "x")
    os.rename(image.layers[0], image.layers[0] + ".gone")
    again = store.resolve("x")
    assert (Path(again.layers[0]) / "etc/name").read_text() == "base"


def test_staging_of_the_dead_is_cleared(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    """What a crashed import left is removed by the next; a running one's is not."""
    import fcntl

    layout.add("", [BASE])
    dead, alive = (tmp_path / "data/staging" / name for name in ("dead", "alive"))
    for path in (dead, alive):
        (path / "fs/deep").mkdir(parents=True)
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    store.resolve(f"oci:{layout.path}")
    os.close(fd)
    assert os.listdir(tmp_path / "data/staging") == ["alive"]
    store.prune()
    assert os.listdir(tmp_path / "data/staging") == []


CRASH = """
import os, sys
from pycontain.image import ImageStore
real = os.rename
count = int(sys.argv[3])
def rename(*args, **words):
    global count
    count -= 1
    if count < 0:
        os._exit(9)
    real(*args, **words)
os.rename = rename
ImageStore(sys.argv[1]).import_archive(sys.argv[2], "x")
"""


def test_a_crash_at_any_rename_is_whole_or_nothing(layout: Layout, tmp_path: Path) -> None:
    """Killed between any two steps, the store holds the image or not, and the next import works."""
    layout.add("", [BASE, TOP])
    for step in range(20):
        root = tmp_path / f"data{step}"
        arguments = [sys.executable, "-c", CRASH, str(root), str(layout.path), str(step)]
        code = subprocess.run(arguments, check=False).returncode
        images = ImageStore(str(root)).ls()
        assert all(os.path.isdir(path) for image in images for path in image.layers)
        if code == 0:
            break
        assert code == 9
        again = ImageStore(str(root)).import_archive(str(layout.path), "x")
        assert (Path(again.layers[1]) / "app").read_text() == "top"
        assert os.listdir(root / "staging") == []
    assert code == 0
    assert step >= 6  # oci-layout, two layers, their blobs, config, manifest, index


def test_one_import_at_a_time_per_layer(layout: Layout, tmp_path: Path) -> None:
    """Concurrent imports of images that share layers, in another order, all succeed."""
    layout.add("a", [BASE, TOP])
    layout.add("b", [TOP, BASE])
    results: list[Any] = []

    def work(tag: str) -> None:
        try:
            results.append(ImageStore(str(tmp_path / "data")).resolve(f"oci:{layout.path}:{tag}"))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=("ab"[n % 2],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(image.layers) for image in results} == {2}
    assert len(os.listdir(tmp_path / "data/layers")) == 2
    assert os.listdir(tmp_path / "data/locks") == ["store"]


def test_store_is_private(store: ImageStore, layout: Layout, tmp_path: Path) -> None:
    """Nobody else may reach setuid programs inside layers (CVE-2021-41091)."""
    layout.add("", [BASE])
    image = store.resolve(f"oci:{layout.path}")
    for path in (tmp_path / "data/layers", tmp_path / "data/images", Path(image.layers[0]).parent):
        assert path.stat().st_mode & 0o077 == 0
