"""Images on a real kernel: what we unpack and stack, against what other tools make of it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import images
import pytest

from pycontain import _native
from pycontain.errors import Unsupported
from pycontain.image import Image, ImageStore, snapshots
from pycontain.oci import Mount

sys.path.insert(0, str(Path(__file__).parents[1] / "image"))

from layouts import Layout, layer
from tars import directory, file


@pytest.fixture
def store(data_root: Path) -> ImageStore:
    return ImageStore(str(data_root))


@pytest.fixture
def container(data_root: Path) -> Iterator[str]:
    """A container's directory, removed at the end."""
    path = data_root / "containers/c"
    yield str(path)
    snapshots.remove(str(path))
    assert not path.exists()


@contextlib.contextmanager
def mounted(mount: Mount) -> Iterator[Path]:
    """The mount, attached nowhere: reachable through its descriptor only."""
    readonly = "ro" in mount.options
    attributes = _native.MOUNT_ATTR_RDONLY if readonly else 0
    options = [option for option in mount.options if option != "ro"]
    fd = _native.fs_mount(mount.type, options, attributes)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def facts(root: Path, *, xattrs: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that an image can say; hard links by the first of their names."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    base = f"{root}/"
    pending = [""]
    while pending:
        here = pending.pop()
        for name in sorted(os.listdir(base + here)):
            inner = f"{here}/{name}" if here else name
            path = base + inner
            info = os.lstat(path)
            if stat.S_ISDIR(info.st_mode):
                pending.append(inner)
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            link = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            linked = "" if stat.S_ISDIR(info.st_mode) else str(info.st_nlink)
            kept = {}
            for key in os.listxattr(path, follow_symlinks=False) if xattrs else ():
                if key.startswith(("user.", "security.capability", "system.posix_acl")):
                    kept[key] = os.getxattr(path, key, follow_symlinks=False)
            found[inner] = (
                info.st_mode, info.st_uid, info.st_gid, size, info.st_mtime_ns, link, linked,
                info.st_rdev, tuple(sorted(kept.items())),
            )  # fmt: skip
            first.setdefault((info.st_dev, info.st_ino), inner)
    return found


def differences(
    ours: dict[str, tuple[object, ...]], theirs: dict[str, tuple[object, ...]]
) -> dict[str, object]:
    """What is not the same, a few only."""
    wrong = {
        name: (ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    }
    return dict([*wrong.items()][:10])


def test_one_layer_is_what_tar_makes(store: ImageStore, tmp_path: Path) -> None:
    """A whole Debian: type, mode, owner, size, time in ns, links, devices, xattrs as GNU tar's."""
    source = images.debian_rootfs()
    image = store.import_rootfs_tar(str(source), "debian:12")
    theirs = tmp_path / "tar"
    theirs.mkdir()
    images.run(
        "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", source, "-C", theirs
    )
    assert differences(facts(Path(image.layers[0])), facts(theirs)) == {}


@pytest.mark.needs("program:umoci")
def test_stacked_layers_are_what_umoci_makes(
    store: ImageStore, tmp_path: Path, container: str
) -> None:
    """Whiteouts, replaced directories, links, attributes: the overlay shows umoci's tree."""
    layout = images.debian_oci()
    image = store.resolve(f"oci:{layout}:layers")
    assert len(image.layers) == 2
    images.run("umoci", "unpack", "--image", f"{layout}:layers", tmp_path / "umoci")
    theirs = facts(tmp_path / "umoci/rootfs")
    with mounted(snapshots.prepare(container, image)) as root:
        ours = facts(root)
    assert ours.keys() == theirs.keys()
    assert differences(ours, theirs) == {}
    assert not os.path.exists(tmp_path / "umoci/rootfs/usr/share/doc")


def test_docker_archive_is_the_same_image(store: ImageStore) -> None:
    """skopeo's docker-archive of the layout has the same layers, unpacked once."""
    direct = store.resolve(f"oci:{images.debian_oci()}:layers")
    saved = store.resolve(f"docker-archive:{images.docker_archive()}:debian:layers")
    assert saved.layers == direct.layers
    assert saved.config.cmd == direct.config.cmd == ("/bin/sh",)


@pytest.mark.needs("program:skopeo")
def test_other_tools_read_the_store(store: ImageStore, data_root: Path, tmp_path: Path) -> None:
    """The store is an OCI layout: skopeo copies an image out of it, and it is the same image."""
    image = store.import_archive(str(images.debian_oci()), "debian:layers", ref="layers")
    target = tmp_path / "copy"
    images.run(
        "skopeo", "copy", "--insecure-policy",
        f"oci:{data_root}/images:debian:layers", f"oci:{target}:x",
    )  # fmt: skip
    assert ImageStore(str(tmp_path / "other")).resolve(f"oci:{target}:x").id == image.id


def small(store: ImageStore, tmp_path: Path, count: int = 2) -> Image:
    """An image of `count` tiny layers, each with a file of its own and one in common."""
    layout = Layout(tmp_path / "layout")
    layers = [
        layer(directory(b"."), directory(b"d"), file(b"d/common", b"%d" % n), file(b"f%d" % n))
        for n in range(count)
    ]
    layout.add("", layers)
    return store.resolve(f"oci:{layout.path}")


def test_container_writes_to_its_own_layer(
    store: ImageStore, tmp_path: Path, data_root: Path
) -> None:
    """Two containers of an image see each other's changes as little as the image does."""
    image = small(store, tmp_path)
    before = facts(Path(image.layers[1]))
    one, two = (snapshots.prepare(str(data_root / f"containers/{n}"), image) for n in "12")
    with mounted(one) as first, mounted(two) as second:
        assert (first / "d/common").read_text() == "1"
        (first / "d/common").write_text("changed")
        (first / "f0").unlink()
        assert (second / "d/common").read_text() == "1"
        assert (second / "f0").exists()
        assert stat.S_IMODE(first.stat().st_mode) == 0o755
    assert facts(Path(image.layers[1])) == before
    with mounted(snapshots.prepare(str(data_root / "containers/1"), image)) as again:
        assert (again / "d/common").read_text() == "changed"
    for name in "12":
        snapshots.remove(str(data_root / f"containers/{name}"))
    assert os.listdir(data_root / "containers") == []


@pytest.mark.parametrize("count", [1, 2])
def test_readonly_view(store: ImageStore, tmp_path: Path, container: str, count: int) -> None:
    """A read-only container can't write to its root."""
    image = small(store, tmp_path, count)
    mount = snapshots.prepare(container, image, readonly=True)
    with mounted(mount) as root:
        assert (root / "f0").read_text() == "data"
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("")


def test_volatile_layer_mounts_again(store: ImageStore, tmp_path: Path, container: str) -> None:
    """A volatile layer that was not cleanly ended is used again when it is prepared again."""
    image = small(store, tmp_path)
    for _ in range(2):
        mount = snapshots.prepare(container, image, volatile=True)
        with mounted(mount) as root:
            (root / "file").write_text("x")


@pytest.mark.needs("kernel:6.8")
def test_many_layers_and_colons(tmp_path: Path, container: str) -> None:
    """100 layers below a path with a colon: no option page limits them."""
    image = small(ImageStore(str(tmp_path / "a:b")), tmp_path, 100)
    with mounted(snapshots.prepare(container, image)) as root:
        assert (root / "d/common").read_text() == "99"
        assert len(list(root.glob("f*"))) == 100


def test_layers_with_long_names_in_one_option(tmp_path: Path) -> None:
    """What exceeds an option's 255 bytes is named by descriptors, as far as these fit."""
    layers = [tmp_path / f"{number}:\\{'x' * 20}" for number in range(30)]
    for number, path in enumerate(layers):
        path.mkdir()
        (path / f"f{number}").touch()
    options = snapshots.lower_options([str(path) for path in layers[:12]], (6, 1))
    with mounted(Mount("/", "overlay", "overlay", (*options, "ro"))) as root:
        assert len(list(root.glob("f*"))) == 12
    options = snapshots.lower_options([str(path) for path in layers], (6, 1))
    with pytest.raises(Unsupported, match="30 layers"):
        _native.fs_mount("overlay", options)


def test_opaque_directory_hides_what_is_below(
    store: ImageStore, tmp_path: Path, container: str
) -> None:
    """Opaque marks, whiteouts, and a directory made anew, as the kernel sees them."""
    layout = Layout(tmp_path / "layout")
    below = [directory(n) for n in (b"o", b"w", b"n")]
    below += [file(n + b"/old") for n in (b"o", b"w", b"n")]
    above = [file(b"o/new"), file(b"o/.wh..wh..opq", b""), file(b"o/.wh.old", b"")]
    above += [file(b"w/.wh.old", b""), file(b".wh.n", b""), file(b"n/new")]
    layout.add("", [layer(*below), layer(*above)])
    image = store.resolve(f"oci:{layout.path}")
    with mounted(snapshots.prepare(container, image)) as root:
        found = {name: sorted(os.listdir(root / name)) for name in ("o", "w", "n")}
    assert found == {"o": ["new"], "w": [], "n": ["new"]}


def test_immutable_files_are_removed(tmp_path: Path) -> None:
    """What a container with CAP_LINUX_IMMUTABLE left does not stay for ever."""
    victim = tmp_path / "c/upper/d"
    victim.mkdir(parents=True)
    (victim / "f").write_text("")
    for path, flag in ((victim / "f", "+i"), (victim, "+a")):
        done = subprocess.run(["chattr", flag, path], check=False, capture_output=True)
        if done.returncode:
            subprocess.run(["chattr", "-i", victim / "f"], check=False, capture_output=True)
            pytest.skip("needs a file system with immutable files")
    snapshots.remove(str(tmp_path / "c"))
    assert os.listdir(tmp_path) == []


def test_mount_inside_is_never_emptied(tmp_path: Path) -> None:
    """A mount that is left inside makes removal fail; what is mounted keeps its files."""
    script = f"""
import os, subprocess
os.makedirs("{tmp_path}/c/upper/m"); os.makedirs("{tmp_path}/precious")
open("{tmp_path}/precious/f", "w").close()
subprocess.run(["mount", "--bind", "{tmp_path}/precious", "{tmp_path}/c/upper/m"], check=True)
from pycontain.image import snapshots
try:
    snapshots.remove("{tmp_path}/c")
except OSError:
    print("refused")
"""
    command = ["unshare", "-m", sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "refused\n"
    assert os.listdir(tmp_path / "precious") == ["f"]
    snapshots.remove(str(tmp_path / "c"))
    assert not os.path.exists(tmp_path / "c")
