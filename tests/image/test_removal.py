"""Removal of hostile trees."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from pycontain.image.removal import remove_path


def test_links_are_removed_not_followed(tmp_path: Path, no_fd_left: None) -> None:
    """Links to files and directories outside go, their targets stay."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/link").symlink_to(outside)
    (tree / "d/up").symlink_to("../..")
    (tree / "file").symlink_to(outside / "kept")
    os.mkfifo(tree / "fifo")
    remove_path(str(tree))
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"


def test_root_may_be_a_link_or_missing(tmp_path: Path) -> None:
    """A link in the place of the tree is removed itself; nothing there is no error."""
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    remove_path(str(tmp_path / "link"))
    remove_path(str(tmp_path / "link"))
    remove_path(str(tmp_path / "missing/deeper"))
    assert os.listdir(tmp_path) == ["target"]


def test_deeper_than_paths_and_descriptors(tmp_path: Path) -> None:
    """A tree 3000 levels deep goes, within few descriptors and no deep recursion."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("n" * 20, dir_fd=fd)
        child = os.open("n" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=child))
        os.close(fd)
        fd = child
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 50
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        remove_path(str(tmp_path / ("n" * 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0, 0o500, 0o300])
def test_unreadable_directories(tmp_path: Path, mode: int) -> None:
    """Directories that their owner may not read or write go too."""
    (tmp_path / "t/d/e").mkdir(parents=True)
    (tmp_path / "t/d/e/f").write_text("")
    (tmp_path / "t/d/e").chmod(mode)
    (tmp_path / "t/d").chmod(mode)
    remove_path(str(tmp_path / "t"))
    assert os.listdir(tmp_path) == []


def test_names_in_any_bytes(tmp_path: Path) -> None:
    """Names that are not UTF-8 are names."""
    os.makedirs(os.fsencode(tmp_path) + b"/t/\xff\xfe\n")
    remove_path(str(tmp_path / "t"))
    assert os.listdir(tmp_path) == []
