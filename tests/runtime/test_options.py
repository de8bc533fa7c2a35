"""The grammars of the options of a run."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.errors import InvalidInput
from pycontain.oci import Device, DeviceRule, IdMap, IoLimit, Rlimit
from pycontain.runtime import options


def fake_stat(path: str) -> os.stat_result:
    """A character device 10:229 of mode 0666, or a block device 8:16 if the path has "sd"."""
    if "missing" in path:
        raise FileNotFoundError(2, "No such file or directory")
    kind, numbers = (0o060660, (8, 16)) if "sd" in path else (0o020666, (10, 229))
    values = [kind, 1, 1, 1, 0, 6, 0, 0, 0, 0]
    return os.stat_result(values, {"st_rdev": os.makedev(*numbers)})


def test_bare_names_are_copied_only_from_a_given_environment() -> None:
    """The library never reads its host's environment; an unset name stays unset."""
    assert options.parse_env(["A=1", "B", "C"], environ={"B": "x=y"}) == {"A": "1", "B": "x=y"}
    with pytest.raises(InvalidInput, match=r"^env: 'B' is not NAME=VALUE"):
        options.parse_env(["B"])


@pytest.mark.parametrize("env", [["=x"], ["A=\0"], {"A=B": "x"}, {"": "x"}, {"A": 1}, "A=1"])
def test_bad_variables(env: list[str]) -> None:
    """What execve or a shell could not carry is refused."""
    with pytest.raises(InvalidInput, match=r"^env: "):
        options.parse_env(env)


def test_env_file() -> None:
    """Values are verbatim: no quotes, no expansion, no trailing space lost."""
    text = '\ufeff# comment\n\nA=1\r\n  B="q" # no comment \nHOME\nGONE\nC=\n'
    assert options.parse_env_file(text, environ={"HOME": "/h"}) == {
        "A": "1",
        "B": '"q" # no comment ',
        "HOME": "/h",
        "C": "",
    }
    with pytest.raises(InvalidInput, match="line 2: 'A B' is not a name"):
        options.parse_env_file("X=1\nA B=2\n", environ={})


@given(st.dictionaries(st.text("AZ_9", min_size=1), st.text("ab =#\"'$\t")))
def test_env_file_round_trip(env: dict[str, str]) -> None:
    """What is written as NAME=VALUE lines is read back."""
    text = "".join(f"{name}={value}\n" for name, value in env.items())
    assert options.parse_env_file(text, environ={}) == env


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024:2048", Rlimit("RLIMIT_NOFILE", 1024, 2048)),
        ("core=0", Rlimit("RLIMIT_CORE", 0, 0)),
        ("RLIMIT_MEMLOCK=-1", Rlimit("RLIMIT_MEMLOCK", 2**64 - 1, 2**64 - 1)),
        ("stack=8192:unlimited", Rlimit("RLIMIT_STACK", 8192, 2**64 - 1)),
    ],
)
def test_ulimit(text: str, limit: Rlimit) -> None:
    """Docker's grammar; -1 is no limit."""
    assert options.parse_ulimit(text) == limit


@pytest.mark.parametrize("text", ["", "nofile", "nofile=", "x=1", "nofile=2:1", "nofile=-1:1"])
def test_bad_ulimits(text: str) -> None:
    """Also a soft limit over the hard one."""
    with pytest.raises(InvalidInput, match=r"^ulimits: "):
        options.parse_ulimit(text)


@pytest.mark.parametrize(
    ("text", "path", "access"),
    [
        ("/dev/fuse", "/dev/fuse", "rwm"),
        ("/dev/fuse:/dev/x", "/dev/x", "rwm"),
        ("/dev/fuse:r", "/dev/fuse", "r"),
        ("/dev/fuse:/dev/x:rw", "/dev/x", "rw"),
    ],
)
def test_device(text: str, path: str, access: str) -> None:
    """Numbers and mode are the host node's."""
    assert options.parse_device(text, stat=fake_stat) == (
        Device(path, "c", 10, 229, 0o666, 0, 6),
        DeviceRule(True, "c", 10, 229, access),
    )


@pytest.mark.parametrize(
    "text", ["", "fuse", "/dev/a:/dev/b:rx", "/dev/a:rr", "/dev/a:", "/a:/b:/c", "/dev/missing"]
)
def test_bad_devices(text: str) -> None:
    """The error names the option."""
    with pytest.raises(InvalidInput, match=r"^devices: "):
        options.parse_device(text, stat=fake_stat)


def test_a_file_is_no_device(tmp_path: object) -> None:
    """An ordinary file or directory can't be granted as a device."""
    with pytest.raises(InvalidInput, match="is not a device"):
        options.parse_device(f"{tmp_path}")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("8:0 rbps=1M wiops=100", IoLimit(8, 0, 1 << 20, None, None, 100)),
        ("8:16 wbps=max,riops=5", IoLimit(8, 16, None, None, 5, None)),
        ("/dev/sdb:rbps=1k", IoLimit(8, 16, 1024)),
    ],
)
def test_io_max(text: str, limit: IoLimit) -> None:
    """By number as in the kernel's file, or by path."""
    assert options.parse_io_max(text, stat=fake_stat) == limit


@pytest.mark.parametrize(
    "text", ["", "8:0", "8:0 x=1", "8 rbps=1", "8:0 rbps=0", "/dev/fuse:rbps=1", "/dev/missing:x"]
)
def test_bad_io_max(text: str) -> None:
    """Not a block device, no limit, or one that would stop everything."""
    with pytest.raises(InvalidInput, match=r"^io_max: "):
        options.parse_io_max(text, stat=fake_stat)


def test_userns_maps() -> None:
    """An extent is for both maps unless it says u or g; host is no user namespace."""
    assert options.parse_userns("host") is None
    assert options.parse_userns("0:100000:65536") == ((IdMap(0, 100000, 65536),),) * 2
    assert options.parse_userns("u0:1000:1,g0:100:1,1:200000:10") == (
        (IdMap(0, 1000, 1), IdMap(1, 200000, 10)),
        (IdMap(0, 100, 1), IdMap(1, 200000, 10)),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auto",
        "0:0",
        "0:0:0",
        "0:0:-1",
        "u0:0:1",
        "0:0:5,4:100:2",
        "0:100:2,5:101:2",
        "0:4294967295:1",
        "uu0:0:1",
        "0:0:1:1",
    ],
)
def test_bad_userns_maps(text: str) -> None:
    """What the kernel would refuse without a reason is refused with one."""
    with pytest.raises(InvalidInput, match=r"^userns: "):
        options.parse_userns(text)
