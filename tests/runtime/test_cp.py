"""`docker cp`'s placement rules, and a container's tree that lies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.errors import InvalidInput, NotFound, UntrustedContent
from pycontain.runtime import cp
from pycontain.runtime.cp import copy_in, copy_out


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A container's root with a directory and a file, as a descriptor and a path."""
    path = tmp_path / "root"
    (path / "dir").mkdir(parents=True)
    (path / "file").write_text("old content")
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield fd, path
    os.close(fd)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of the host with a file and a tree."""
    path = tmp_path / "host"
    (path / "tree/sub").mkdir(parents=True)
    (path / "tree/a").write_text("a")
    (path / "tree/sub/b").write_text("b")
    (path / "one").write_text("one")
    return path


def tree(path: Path) -> list[str]:
    """All names below a directory."""
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("one", "/new", "new"),
        ("one", "new", "new"),
        ("one", "/dir", "dir/one"),
        ("one", "/dir/", "dir/one"),
        ("one", "/dir/x", "dir/x"),
        ("one", "/", "one"),
        ("one", "", "one"),
        ("one", "/file", "file"),
    ],
)
def test_a_file_goes_in(
    root: tuple[int, Path], host: Path, source: str, destination: str, made: str
) -> None:
    """To a new name, over a file, or into a directory under its own name."""
    copy_in(root[0], str(host / source), destination)
    assert (root[1] / made).read_text() == "one"


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("tree", "/dir", ["dir/tree/a", "dir/tree/sub/b"]),
        ("tree/", "/dir", ["dir/tree/a"]),
        ("tree/.", "/dir", ["dir/a", "dir/sub/b"]),
        ("tree", "/new", ["new/a", "new/sub/b"]),
        ("tree/.", "/new/", ["new/a", "new/sub/b"]),
    ],
)
def test_a_directory_goes_in(
    root: tuple[int, Path], host: Path, source: str, destination: str, made: list[str]
) -> None:
    """As itself into a directory, as a new name, or just its content with `/.`."""
    copy_in(root[0], f"{host}/{source}", destination)
    for name in made:
        assert (root[1] / name).is_file()


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("missing", "/x", NotFound),
        ("one", "/missing/x", NotFound),
        ("one", "/missing/", NotFound),
        ("one", "/file/", InvalidInput),
        ("tree", "/file", InvalidInput),
        ("tree", "/missing/x", NotFound),
    ],
)
def test_what_docker_refuses(
    root: tuple[int, Path], host: Path, source: str, destination: str, error: type[Exception]
) -> None:
    """Nothing is made then."""
    before = tree(root[1])
    with pytest.raises(error):
        copy_in(root[0], str(host / source), destination)
    assert tree(root[1]) == before and (root[1] / "file").read_text() == "old content"


def test_out_is_the_mirror_image(root: tuple[int, Path], host: Path) -> None:
    """The same rules from the container to the host, modes and times kept."""
    fd, path = root
    copy_in(fd, str(host / "tree"), "/dir")
    os.chmod(path / "dir/tree/a", 0o640)
    os.utime(path / "dir/tree/a", ns=(1_000_000_001, 2_000_000_002))
    copy_out(fd, "/dir/tree", str(host / "new"))
    copy_out(fd, "/dir/tree/.", str(host))
    copy_out(fd, "/dir/tree/a", str(host / "tree/sub"))
    assert {"new/a", "new/sub/b", "a", "sub/b", "tree/sub/a"} <= set(tree(host))
    status = os.stat(host / "new/a")
    assert status.st_mode & 0o7777 == 0o640 and status.st_mtime_ns == 2_000_000_002


def test_links_lead_nowhere_outside(root: tuple[int, Path], host: Path) -> None:
    """Absolute and climbing links in the container are resolved in the container."""
    fd, path = root
    os.symlink(str(host), path / "abs")
    os.symlink("../" * 20 + str(host).lstrip("/"), path / "climb")
    os.symlink("/dir", path / "inside")
    for name in ("abs", "climb"):
        with pytest.raises((NotFound, OSError)):
            copy_out(fd, f"/{name}/one", str(host / "stolen"))
        with pytest.raises((NotFound, OSError)):
            copy_in(fd, str(host / "one"), f"/{name}/planted")
    copy_in(fd, str(host / "one"), "/inside")
    assert (path / "dir/one").is_file()
    assert "stolen" not in tree(host) and "planted" not in tree(host)


def test_a_link_in_a_tree_is_never_followed(root: tuple[int, Path], host: Path) -> None:
    """A tree with `d` as a link, merged with one that has `d` as a directory: refused; a file in
    place of a link replaces the link and leaves its target alone."""
    fd, path = root
    (path / "tree").mkdir()
    os.symlink(host, path / "tree/sub")
    os.symlink(host / "one", path / "tree/a")
    with pytest.raises(InvalidInput):
        copy_in(fd, str(host / "tree"), "/")
    assert (host / "one").read_text() == "one" and "b" not in os.listdir(host)
    assert not (path / "tree/a").is_symlink() and (path / "tree/a").read_text() == "a"
    # The other way round: a hostile container, links waiting on the host from an earlier copy.
    os.symlink("/etc", path / "dir/x")
    copy_out(fd, "/dir", str(host))
    os.unlink(path / "dir/x")
    (path / "dir/x").mkdir()
    with pytest.raises(InvalidInput):
        copy_out(fd, "/dir", str(host))


def test_links_are_copied_as_links(root: tuple[int, Path], host: Path) -> None:
    """Unless the source ends in a slash."""
    os.symlink("one", host / "link")
    copy_in(root[0], str(host / "link"), "/link")
    assert os.readlink(root[1] / "link") == "one"


def test_a_linked_file_is_written_through_its_link(root: tuple[int, Path], host: Path) -> None:
    """A destination that is a link to a file of the container stays a link."""
    fd, path = root
    os.symlink("/file", path / "alias")
    copy_in(fd, str(host / "one"), "/alias")
    assert (path / "alias").is_symlink() and (path / "file").read_text() == "one"


def test_special_files(root: tuple[int, Path], host: Path) -> None:
    """A FIFO is copied and does not block, a socket is left out."""
    fd, path = root
    os.mkfifo(path / "dir/fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{fd}/dir/sock")  # short enough for sun_path
        copy_out(fd, "/dir", str(host / "out"))
    assert tree(host / "out") == ["fifo"]


def test_a_deep_tree_is_refused(
    root: tuple[int, Path], host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the stack nor the descriptors run out."""
    monkeypatch.setattr(cp, "MAX_DEPTH", 10)
    before = len(os.listdir("/proc/self/fd"))
    deep = root[1]
    for _ in range(20):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(UntrustedContent, match="deep"):
        copy_out(root[0], "/d", str(host / "out"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_proc_is_not_written(host: Path) -> None:
    """A link of the container to its /proc does not turn a copy into a kernel setting."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(UntrustedContent, match="/proc"):
            copy_in(fd, str(host / "one"), "/proc/self/comm")
        with pytest.raises(UntrustedContent, match="/proc"):
            copy_out(fd, "/proc/version", str(host / "version"))
    finally:
        os.close(fd)
