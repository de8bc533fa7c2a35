"""Users are looked up in the container's own files, which are hostile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontain.errors import InvalidInput, UntrustedContent
from pycontain.oci import User
from pycontain.runtime.users import lookup

PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
1000:x:0:0:trap:/root:/bin/sh
broken:x:abc:0::/:/bin/sh
huge:x:4294967296:0::/:/bin/sh
minus:x:-1:0::/:/bin/sh
rel:x:7:7::relative:/bin/sh
"""
GROUP = """root:x:0:
app:x:1001:
disk:x:6:app,other
audio:x:29:other,app
bad:x:x:app
2000:x:0:
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A root with passwd and group, as a directory descriptor and a path."""
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd, path
    os.close(fd)


@pytest.mark.parametrize(
    ("user", "expected", "home"),
    [
        ("", User(), "/root"),
        ("0", User(), "/root"),
        ("root", User(), "/root"),
        ("0:5", User(0, 5), "/root"),
        ("app", User(1000, 1001, (6, 29)), "/home/app"),
        ("1000", User(1000, 1001, (6, 29)), "/home/app"),
        ("app:disk", User(1000, 6), "/home/app"),
        ("app:2000", User(1000, 2000), "/home/app"),
        ("1234", User(1234, 0), "/"),
        ("1234:4321", User(1234, 4321), "/"),
        ("rel", User(7, 7), "/"),
        ("2147483647", User(2147483647, 0), "/"),
    ],
)
def test_docker_grammar(root: tuple[int, Path], user: str, expected: User, home: str) -> None:
    """Names and numbers, with and without a group; a number is never another user's name."""
    assert lookup(root[0], user) == (expected, home)


@pytest.mark.parametrize(
    "user",
    [
        "nobody",
        "broken",
        "huge",
        "minus",
        "app:nogroup",
        "app:bad",
        ":app",
        "app:",
        "a:b:c",
        "2147483648",
        "4294967296",
        "99999999999999999999",
        "0:2147483648",
        "-1",
        "+0",
        "app\x00",
    ],
)
def test_no_doubtful_user_becomes_root(root: tuple[int, Path], user: str) -> None:
    """Unknown names, overflowing ids (CVE-2024-40635) and malformed entries are refused."""
    with pytest.raises(InvalidInput, match=r"^user: "):
        lookup(root[0], user)


def test_groups_are_added_by_name_and_number(root: tuple[int, Path]) -> None:
    """After those of the user, each once; an unknown one names its option."""
    assert lookup(root[0], "app", ["disk", 44, "45"])[0].additional_gids == (6, 29, 44, 45)
    assert lookup(root[0], "", ["disk"])[0] == User(0, 0, (6,))
    with pytest.raises(InvalidInput, match=r"^group_add: .*'wheel'"):
        lookup(root[0], "", ["wheel"])


def test_root_needs_no_files() -> None:
    """The usual case opens nothing, so it works on a root without /etc."""
    assert lookup(-1, "0:0") == (User(), "/root")


def test_links_stay_inside_the_root(root: tuple[int, Path], tmp_path: Path) -> None:
    """An absolute or climbing link is resolved as in the container, not on the host."""
    fd, path = root
    (tmp_path / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    os.rename(path / "etc/passwd", path / "real")
    for target in ("../../../../../../real", "/real"):
        os.symlink(target, path / "etc/passwd")
        assert lookup(fd, "app")[0].uid == 1000
        os.unlink(path / "etc/passwd")
    os.symlink(str(tmp_path / "passwd"), path / "etc/passwd")
    with pytest.raises(InvalidInput):
        lookup(fd, "evil")


def test_special_files_are_not_opened(root: tuple[int, Path]) -> None:
    """A FIFO does not block, a directory is no file, an endless file ends (CVE-2024-9676)."""
    fd, path = root
    os.unlink(path / "etc/passwd")
    os.mkfifo(path / "etc/passwd")
    with pytest.raises(UntrustedContent, match="not a regular file"):
        lookup(fd, "app")
    os.unlink(path / "etc/passwd")
    with open(path / "etc/passwd", "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(UntrustedContent, match="larger than 1 MiB"):
        lookup(fd, "app")


def test_numeric_users_work_without_files(root: tuple[int, Path]) -> None:
    """Scratch images have no passwd."""
    fd, path = root
    os.unlink(path / "etc/passwd")
    os.unlink(path / "etc/group")
    assert lookup(fd, "5:6") == (User(5, 6), "/")
    with pytest.raises(InvalidInput):
        lookup(fd, "app")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(passwd=st.text("ab:0x1\n/", max_size=80), user=st.text("ab01:+-", max_size=8))
def test_hostile_passwd(root: tuple[int, Path], passwd: str, user: str) -> None:
    """Whatever the files say: ids in range or InvalidInput, and 0 only if it says 0."""
    fd, path = root
    (path / "etc/passwd").write_text(passwd)
    with contextlib.suppress(InvalidInput):
        found, home = lookup(fd, user)
        assert 0 <= found.uid < 2**31 and home.startswith("/")
        name = user.partition(":")[0]
        if name.isdigit():
            assert found.uid == int(name)
