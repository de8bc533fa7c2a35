"""Tar streams into and out of a container's root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.errors import NotFound, UntrustedContent
from pycontain.runtime.tarstream import get_tar, put_tar


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A container's root with an empty directory, as a descriptor and a path."""
    path = tmp_path / "root"
    (path / "dir").mkdir(parents=True)
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield fd, path
    os.close(fd)


def tar_of(*entries: tuple[str, bytes, str | bytes], mode: str = "w") -> io.BytesIO:
    """An archive of (name, type, content or link target)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, 0o644, 5
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                tar.addfile(info)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_in_and_out_again(root: tuple[int, Path], mode: str) -> None:
    """Files, directories, links, modes and times; missing parents are made; compressed or not."""
    stream = tar_of(
        ("a/b/file", tarfile.REGTYPE, b"data"),
        ("./a/link", tarfile.SYMTYPE, "b/file"),
        ("a/hard", tarfile.LNKTYPE, "a/b/file"),
        mode=mode,
    )
    put_tar(root[0], stream, "/dir")
    base = root[1] / "dir/a"
    assert (base / "link").read_text() == "data" and os.readlink(base / "link") == "b/file"
    assert (base / "hard").samefile(base / "b/file") and os.stat(base / "hard").st_mtime == 5
    out = io.BytesIO()
    get_tar(root[0], "/dir/a", out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        assert sorted(tar.getnames()) == ["a", "a/b", "a/b/file", "a/hard", "a/link"]
        member = tar.extractfile("a/b/file")
        assert member is not None and member.read() == b"data"
    out = io.BytesIO()
    get_tar(root[0], "/dir/.", out)
    out.seek(0)
    put_tar(root[0], out, "/")
    assert (root[1] / "a/b/file").read_bytes() == b"data"


@pytest.mark.parametrize(
    "entries",
    [
        [("../x", tarfile.REGTYPE, b"x")],
        [("a/../../x", tarfile.REGTYPE, b"x")],
        [("l", tarfile.SYMTYPE, ".."), ("l/x", tarfile.REGTYPE, b"x")],
        [("l", tarfile.SYMTYPE, "/"), ("l/x", tarfile.REGTYPE, b"x")],
        [("h", tarfile.LNKTYPE, "../outside")],
        [("l", tarfile.SYMTYPE, "../outside"), ("h", tarfile.LNKTYPE, "missing")],
        [("dev", tarfile.CHRTYPE, "")],
        [("fifo", tarfile.FIFOTYPE, "")],
        [("a/" * 200 + "x", tarfile.REGTYPE, b"x")],
    ],
)
def test_nothing_leaves_the_directory(
    root: tuple[int, Path], entries: list[tuple[str, bytes, str | bytes]]
) -> None:
    """Climbing names, links out of it, and links through links are refused."""
    (root[1] / "outside").write_text("mine")
    with pytest.raises(UntrustedContent):
        put_tar(root[0], tar_of(*entries), "/dir")
    assert sorted(os.listdir(root[1])) == ["dir", "outside"]
    assert (root[1] / "outside").read_text() == "mine"
    assert os.stat(root[1] / "outside").st_nlink == 1


def test_a_file_replaces_a_link_and_not_its_target(root: tuple[int, Path]) -> None:
    """A link that the container planted under an entry's name is removed, not written through."""
    (root[1] / "outside").write_text("mine")
    os.symlink("../outside", root[1] / "dir/x")
    put_tar(root[0], tar_of(("x", tarfile.REGTYPE, b"new")), "/dir")
    assert (root[1] / "outside").read_text() == "mine"
    assert (root[1] / "dir/x").read_bytes() == b"new" and not (root[1] / "dir/x").is_symlink()


def test_an_inner_link_is_followed(root: tuple[int, Path]) -> None:
    """lib -> usr/lib works as it does when the files are there."""
    (root[1] / "usr/lib").mkdir(parents=True)
    os.symlink("usr/lib", root[1] / "lib")
    put_tar(root[0], tar_of(("lib/x", tarfile.REGTYPE, b"x")), "/")
    assert (root[1] / "usr/lib/x").read_bytes() == b"x"


@pytest.mark.parametrize("data", [b"not a tar" * 100, b"\x1f\x8b\x08junk"])
def test_garbage_is_refused(root: tuple[int, Path], data: bytes) -> None:
    """What is no archive, and an archive that is cut off."""
    with pytest.raises(UntrustedContent):
        put_tar(root[0], io.BytesIO(data), "/dir")
    whole = tar_of(("x", tarfile.REGTYPE, b"x" * 5000)).getvalue()
    with pytest.raises(UntrustedContent):
        put_tar(root[0], io.BytesIO(whole[:3000]), "/dir")
    with pytest.raises(NotFound):
        put_tar(root[0], io.BytesIO(whole), "/missing")
