"""Mount words: what they mean, and which of them contradict each other."""

from __future__ import annotations

import pytest

from pycontain.errors import InvalidSpec, NotFound
from pycontain.isolation.mounts import id_map_text, open_host_mount, parse_options
from pycontain.oci import IdMap, Mount

RDONLY, NOSUID, NODEV, NOEXEC, NOATIME = 1, 2, 4, 8, 0x10


def test_words_become_attributes_and_the_rest_is_data() -> None:
    """Known words are flags; unknown ones belong to the file system, in order."""
    found = parse_options(("ro", "nosuid", "nodev", "noexec", "size=64k", "mode=755"))
    assert found.set == RDONLY | NOSUID | NODEV | NOEXEC
    assert found.data == ("size=64k", "mode=755")


def test_the_later_word_wins() -> None:
    """As mount(8): "ro,rw" is writable, "rw,ro" is not."""
    assert parse_options(("ro", "rw")).set == 0
    assert parse_options(("rw", "ro")).set == RDONLY
    assert parse_options(("rw", "ro")).clear == 0


def test_recursive_words_are_kept_apart() -> None:
    """rro is the whole tree (mount_setattr); "relatime" and "rw" only look recursive."""
    found = parse_options(("rro", "rnosuid", "relatime"))
    assert found.recursive_set == RDONLY | NOSUID
    assert found.set == 0


@pytest.mark.parametrize("word", ["private", "rprivate", "slave", "rshared", "unbindable"])
def test_propagation(word: str) -> None:
    """One propagation a mount, recursive with an r."""
    found = parse_options((word,))
    assert found.propagation
    assert found.propagation_recursive == word.startswith("r")


def test_two_propagations_are_refused_by_name() -> None:
    """Which one would hold is nobody's guess."""
    with pytest.raises(InvalidSpec, match=r"mounts\[2\].options"):
        parse_options(("private", "rslave"), "mounts[2]")


def test_id_map_text() -> None:
    """The format of /proc/PID/uid_map."""
    assert id_map_text((IdMap(0, 1000, 1), IdMap(1, 100000, 9))) == "0 1000 1\n1 100000 9\n"


def test_relative_bind_source_is_refused() -> None:
    """It would depend on the host program's working directory."""
    with pytest.raises(InvalidSpec, match="absolute"):
        open_host_mount(Mount("/x", "bind", "some/dir", ("bind",)), "mounts[0]")


def test_missing_bind_source_is_named() -> None:
    """The message has the field and the path; nothing is created (docker's old trap)."""
    with pytest.raises(NotFound, match=r"mounts\[3\].source: /no/such/dir"):
        open_host_mount(Mount("/x", "bind", "/no/such/dir", ("bind",)), "mounts[3]")
