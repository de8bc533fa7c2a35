"""What snapshots say is to be mounted; that it mounts is in tests/privileged/test_images.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycontain.errors import Unsupported
from pycontain.image import Image, snapshots
from pycontain.image.snapshots import lower_options
from pycontain.oci import Digest, ImageConfig

ID = Digest("sha256:" + "a" * 64)


def image(tmp_path: Path, count: int) -> Image:
    layers = tuple(str(tmp_path / f"l{n}") for n in range(count))
    for path in layers:
        os.mkdir(path, 0o711)
        os.chmod(path, 0o711)
    return Image(ID, (), ImageConfig(), layers)


def test_overlay_of_layers(tmp_path: Path) -> None:
    """The topmost layer comes first; upper has the attributes of the image's root."""
    container = tmp_path / "c"
    mount = snapshots.prepare(str(container), image(tmp_path, 2))
    assert (mount.destination, mount.type) == ("/", "overlay")
    lower = [o.partition("=")[2] for o in mount.options if o.startswith("lowerdir+")]
    assert lower == [str(tmp_path / "l1"), str(tmp_path / "l0")]
    assert f"upperdir={container}/upper" in mount.options
    assert {"index=off", "metacopy=off", "redirect_dir=nofollow"} <= set(mount.options)
    assert (container / "upper").stat().st_mode & 0o7777 == 0o711
    assert container.stat().st_mode & 0o7777 == 0o700
    assert snapshots.image_of(str(container)) == ID


def test_prepare_again_keeps_what_was_written(tmp_path: Path) -> None:
    """A stopped container starts with its files."""
    made = image(tmp_path, 1)
    first = snapshots.prepare(str(tmp_path / "c"), made)
    (tmp_path / "c/upper/file").write_text("kept")
    assert snapshots.prepare(str(tmp_path / "c"), made) == first
    assert (tmp_path / "c/upper/file").read_text() == "kept"


def test_readonly_has_no_upper(tmp_path: Path) -> None:
    """Without an upper layer overlayfs wants two lower ones."""
    mount = snapshots.prepare(str(tmp_path / "c"), image(tmp_path, 1), readonly=True)
    assert not any(o.startswith(("upperdir", "workdir")) for o in mount.options)
    assert sum(o.startswith("lowerdir+") for o in mount.options) == 2
    assert "ro" in mount.options


def test_old_kernels_take_one_option() -> None:
    """Before Linux 6.8 the layers are one option, colons escaped, within a page."""
    assert lower_options(["/a:b", "/c"], (6, 7)) == ["lowerdir=/a\\:b:/c"]
    assert lower_options(["/a:b", "/c"], (6, 8)) == ["lowerdir+=/a:b", "lowerdir+=/c"]
    with pytest.raises(Unsupported, match=r"Linux 6\.8"):
        lower_options(["/long" * 20] * 50, (6, 1))
    with pytest.raises(Unsupported, match="500"):
        lower_options(["/l"] * 501, (6, 8))


def test_remove_is_idempotent(tmp_path: Path) -> None:
    """Removing a container's layer twice is no error, whether it was written or not."""
    made = image(tmp_path, 1)
    for content in ("", "file"):
        container = tmp_path / "c"
        snapshots.prepare(str(container), made)
        if content:
            (container / "upper/d").mkdir()
            (container / "upper/d/f").write_text("")
        snapshots.remove(str(container))
        snapshots.remove(str(container))
        assert not container.exists()
