"""Docker's `--mount`, `-v` and `--tmpfs`."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.errors import InvalidInput
from pycontain.oci import IdMap, Mount
from pycontain.runtime.volumes import parse_mount, parse_tmpfs, parse_volume


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a:/b", Mount("/b", "bind", "/a", ("rbind", "rprivate"))),
        ("/a:/b:ro", Mount("/b", "bind", "/a", ("rbind", "rro", "rprivate"))),
        ("/a/:/b//c/:rw,Z", Mount("/b/c", "bind", "/a", ("rbind", "rprivate"))),
        ("/a:/b/../c:rslave,noexec", Mount("/c", "bind", "/a", ("rbind", "noexec", "rslave"))),
        ("/a:/b:bind,ro", Mount("/b", "bind", "/a", ("bind", "rro", "rprivate"))),
    ],
)
def test_volume(text: str, mount: Mount) -> None:
    """A volume is a recursive private bind mount, and read-only means all of it."""
    assert parse_volume(text) == mount


def test_a_dotted_source_is_relative_to_the_working_directory() -> None:
    """As docker's command line has it."""
    assert parse_volume("./x:/x").source == os.path.abspath("x")


@pytest.mark.parametrize(
    "text", ["", "/a", "/a:/b:ro:x", "/a:b", "/a:/", "/a:/..", "/a:/b:wat", ":/b", "/a:/b\0c"]
)
def test_bad_volumes(text: str) -> None:
    """The error names the option."""
    with pytest.raises(InvalidInput, match=r"^volumes: "):
        parse_volume(text)


def test_a_volume_by_name_is_refused_with_a_way_out() -> None:
    """A name is never taken for a path."""
    with pytest.raises(InvalidInput, match=r"'data' is a volume's name.*\./data"):
        parse_volume("data:/data")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("/run", ("nosuid", "nodev", "noexec")),
        ("/run:size=64m,mode=1777", ("nosuid", "nodev", "noexec", "size=67108864", "mode=1777")),
        ("/run:exec,size=50%", ("nosuid", "nodev", "size=50%")),
        ("/run:noexec,ro", ("nosuid", "nodev", "noexec", "ro")),
    ],
)
def test_tmpfs(text: str, options: tuple[str, ...]) -> None:
    """A tmpfs is nosuid, nodev and noexec unless asked otherwise."""
    assert parse_tmpfs(text) == Mount("/run", "tmpfs", "tmpfs", options)


@pytest.mark.parametrize(
    "text", ["run", "/", "/x:size=", "/x:size=101%", "/x:mode=9", "/x:mode=77777", "/x:lowerdir=/"]
)
def test_bad_tmpfs(text: str) -> None:
    """Only known options reach the kernel."""
    with pytest.raises(InvalidInput, match=r"^tmpfs: "):
        parse_tmpfs(text)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("type=bind,src=/a,dst=/b", Mount("/b", "bind", "/a", ("rbind", "rprivate"))),
        (
            "type=bind,source=/a,target=/b,readonly,bind-propagation=rslave",
            Mount("/b", "bind", "/a", ("rbind", "rro", "rslave")),
        ),
        (
            "type=bind,source=/a,destination=/b,ro=true,bind-recursive=writable",
            Mount("/b", "bind", "/a", ("rbind", "ro", "rprivate")),
        ),
        (
            "type=bind,src=/a,dst=/b,bind-nonrecursive",
            Mount("/b", "bind", "/a", ("bind", "rprivate")),
        ),
        ('type=bind,"src=/a,""b",dst=/b', Mount("/b", "bind", '/a,"b', ("rbind", "rprivate"))),
        (
            "type=tmpfs,dst=/t,tmpfs-size=1k,tmpfs-mode=700",
            Mount("/t", "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec", "size=1024", "mode=700")),
        ),
        (
            "type=bind,src=/a,dst=/b,uidmap=0:1000:1,gidmap=0:100:1",
            Mount(
                "/b",
                "bind",
                "/a",
                ("rbind", "rprivate", "idmap"),
                (IdMap(0, 1000, 1),),
                (IdMap(0, 100, 1),),
            ),
        ),
    ],
)
def test_mount(text: str, mount: Mount) -> None:
    """Docker's keys and synonyms, CSV quoting, and id maps."""
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "type=bind",
        "type=bind,src=/a",
        "type=bind,dst=/b",
        "type=volume,src=x,dst=/b",
        "src=/a,dst=/b",
        "type=bind,src=/a,dst=/b,dst=/c",
        "type=bind,src=/a,dst=/b,tmpfs-size=1",
        "type=tmpfs,src=/a,dst=/b",
        "type=tmpfs,dst=/b,uidmap=0:0:1",
        "type=bind,src=/a,dst=/b,readonly=maybe",
        "type=bind,src=/a,dst=/b,wat=1",
        "type=bind,src=/a,dst=/b,wat",
        'type=bind,"src=/a,dst=/b',
        "type=bind,src=/a,dst=/b,uidmap=x",
    ],
)
def test_bad_mounts(text: str) -> None:
    """Unknown keys, keys of another type, and what is missing are refused."""
    with pytest.raises(InvalidInput, match=r"^mounts: "):
        parse_mount(text)


@given(st.text('abd/:=,"\0.stypebindourc', max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    """Whatever was typed: a mount with an absolute destination, or InvalidInput."""
    for parse in (parse_mount, parse_volume, parse_tmpfs):
        with contextlib.suppress(InvalidInput):
            mount = parse(text)
            assert mount.destination.startswith("/") and ".." not in mount.destination.split("/")
