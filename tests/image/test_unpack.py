"""The unpacker: what a layer means, and that nothing outside its root is read or written.

The hostile layers follow the classes of attacks on unpackers; each is named with one of its CVEs.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tars import END, directory, extract, file, hardlink, header, pax, symlink, tree

from pycontain.errors import KernelError, UnsafeLayer
from pycontain.image.inflate import Inflater, Limits
from pycontain.image.tar import TarReader
from pycontain.image.unpack import Policy

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")
OPAQUE = "trusted.overlay.opaque" if ROOT else "user.overlay.opaque"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root to be, beside a canary that must not change."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret").write_text("secret")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("host")

    def outside() -> dict[str, tuple[object, ...]]:
        found = tree(tmp_path)
        return {k: v for k, v in found.items() if not k.startswith(("root", "lower"))}

    before = outside()
    yield tmp_path / "root"
    assert outside() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"canary", "etc", "root", "lower", "lower2"}


def is_whiteout(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path, follow_symlinks=False)


# ---- hostile layers --------------------------------------------------------------------------

UP = b"../canary/secret"
REFUSED = {
    "C1 dotdot (CVE-2007-4559)": [file(b"../canary/new")],
    "C1 dotdot inside": [directory(b"a"), file(b"a/../../canary/new")],
    "C1 dotdot in pax path": [pax((b"path", b"../canary/new")), file(b"f")],
    "C2 root as symlink (CVE-2021-29136)": [symlink(b".", b"../canary"), file(b"new")],
    "C2 root as file": [file(b"./")],
    "C2 parent is a file": [file(b"a"), file(b"a/b")],
    "C2 loop of symlinks": [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/f")],
    "C3 link to the host (CVE-2026-50163)": [hardlink(b"l", UP)],
    "C3 link to an absolute host file": [hardlink(b"l", b"/etc/hostname")],
    "C3 link through a symlink": [symlink(b"d", b"../canary"), hardlink(b"l", b"d/secret")],
    "C3 link to a later file": [hardlink(b"l", b"f"), file(b"f")],
    "C3 link to itself": [hardlink(b"l", b"l")],
    "C3 link to a directory": [directory(b"d"), hardlink(b"l", b"d")],
    "C3 link to the root": [hardlink(b"l", b".")],
    "C3 link to a whiteout": [file(b".wh.a", b""), hardlink(b"l", b"a")],
    "C8 name too long": [pax((b"path", b"n" * 256)), file(b"f")],
    "C8 path too long": [pax((b"path", b"n/" * 2100 + b"f")), file(b"f")],
    "C8 too deep": [pax((b"path", b"n/" * 257 + b"f")), file(b"f")],
    "C10 device 0:0": [header(b"c", b"3")],
    "C11 overlay xattr": [pax((b"SCHILY.xattr.trusted.overlay.redirect", b"/")), directory(b"d")],
    "C11 overlay xattr of a file": [pax((b"SCHILY.xattr.user.overlay.metacopy", b"")), file(b"f")],
    "C21 whiteout without a name": [file(b".wh.", b"")],
    "C21 whiteout of dot": [file(b".wh..", b"")],
    "C21 whiteout of dotdot": [file(b"d/.wh...", b"")],
    "C21 file below a whiteout": [file(b".wh.d/f")],
    "symlink without target": [symlink(b"l", b"")],
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_layer_is_refused(case: str, root: Path, no_fd_left: None) -> None:
    """The layer is an error that names the entry, and leaves no descriptor and no trace outside."""
    with pytest.raises(UnsafeLayer) as caught:
        extract(root, *REFUSED[case])
    assert caught.value.entry is not None


CONTAINED = {
    "C1 absolute name": ([file(b"/etc/passwd", b"own")], "etc/passwd"),
    "C2 symlinked parent": (
        [symlink(b"d", b"../canary"), directory(b"canary"), file(b"d/new")],
        "canary/new",
    ),
    "C2 absolute symlinked parent": (
        [symlink(b"d", b"/etc"), directory(b"etc"), file(b"d/passwd")],
        "etc/passwd",
    ),
    "C2 chain of symlinks": (
        [directory(b"x"), symlink(b"a", b"../../x"), symlink(b"b", b"a/.."), file(b"b/f")],
        "f",
    ),
    "C2 directory replaced after it was cached": (
        [
            directory(b"d"),
            file(b"d/one"),
            symlink(b"d", b"../canary"),
            directory(b"canary"),
            file(b"d/two"),
        ],
        "canary/two",
    ),
    "C2 symlink replaced after it was cached": (
        [directory(b"t"), symlink(b"d", b"t"), file(b"d/a"), directory(b"d"), file(b"d/b")],
        "d/b",
    ),
    "C5 file over a symlink": ([symlink(b"l", UP), file(b"l", b"own")], "l"),
    "C5 directory attributes through a symlink (CVE-2021-32760)": (
        [directory(b"d", 0o777), symlink(b"d", b"../canary"), file(b"f")],
        "f",
    ),
    "C3 link to a symlink is the symlink": ([symlink(b"s", UP), hardlink(b"l", b"s")], "l"),
    "C4 device node name": ([directory(b"dev"), file(b"dev/null")], "dev/null"),
}


@pytest.mark.parametrize("case", CONTAINED)
def test_hostile_layer_stays_inside(case: str, root: Path, no_fd_left: None) -> None:
    """What the layer names lands below its own root, wherever its links point."""
    parts, name = CONTAINED[case]
    extract(root, *parts)
    assert (root / name).lstat()


def test_dangling_symlink_as_parent_makes_nothing_outside(root: Path) -> None:
    """A parent that is a dangling link is an error, not a directory made at its target."""
    with pytest.raises(UnsafeLayer):
        extract(root, symlink(b"d", b"../canary/made"), file(b"d/f"))


def test_casefolded_names_are_different_files(root: Path) -> None:
    """C20: names are bytes; no name hits another in a different case or normal form."""
    extract(root, file(b"A", b"1"), file(b"a", b"2"), file("é".encode(), b"3"), file(b"\xff", b"4"))
    assert {p.read_bytes() for p in root.iterdir()} == {b"1", b"2", b"3", b"4"}


def test_entry_limit_counts_implicit_directories(root: Path) -> None:
    """C8: directories that an entry implies count as entries."""
    with pytest.raises(UnsafeLayer, match="more than 5 entries"):
        extract(root, file(b"a/b/c/d/e/f"), file(b"g"), policy=Policy(max_entries=5))


def test_layer_leaves_space_on_the_disk(root: Path) -> None:
    """C8: the unpack ends with ENOSPC before the disk is full."""
    with pytest.raises(KernelError, match="free space"):
        extract(root, file(b"f"), policy=Policy(reserve_bytes=1 << 60))


def test_ratio_limit(root: Path) -> None:
    """C8: a bomb ends at the ratio, not at the disk's end."""
    bomb = gzip.compress(file(b"zeros", bytes(8 << 20)) + END)
    stream = io.BytesIO(bomb)
    inflater = Inflater(stream.read, limits=Limits(ratio=50, ratio_from_bytes=1 << 20))
    source = TarReader(inflater.read)
    source.next()
    with pytest.raises(UnsafeLayer, match="50:1"):
        while source.read():
            pass


def test_whiteouts_cost_no_walk(root: Path) -> None:
    """C9: replacing a directory again and again does not cost its lower content each time."""
    files = [file(b"d/f%d" % n, b"") for n in range(50)]
    done = extract(root, *files, *[file(b".wh.d", b"")] * 50)
    assert done.entries == 100
    assert is_opaque(root / "d")
    assert len(list((root / "d").iterdir())) == 50


# ---- meaning ---------------------------------------------------------------------------------


def test_modes_times_and_links(root: Path) -> None:
    """Modes whatever the umask, times to the nanosecond, directories' last, hard links shared."""
    extract(
        root,
        directory(b".", 0o711, mtime=7),
        directory(b"d", 0o1777, mtime=5),
        pax((b"mtime", b"3.000000009")),
        file(b"d/f", mode=0o4755),
        hardlink(b"d/h", b"./d/f"),
        symlink(b"d/s", b"f", mtime=4),
        header(b"d/p", b"6", mode=0o622),
    )
    assert (root / "d/f").stat().st_mode & 0o7777 == 0o4755
    assert (root / "d/f").stat().st_mtime_ns == 3_000_000_009
    assert (root / "d/f").stat().st_ino == (root / "d/h").stat().st_ino
    assert (root / "d/s").lstat().st_mtime == 4
    assert stat.S_ISFIFO((root / "d/p").stat().st_mode)
    assert (root / "d/p").stat().st_mode & 0o777 == 0o622
    assert ((root / "d").stat().st_mode & 0o7777, (root / "d").stat().st_mtime) == (0o1777, 5)
    assert (root.stat().st_mode & 0o7777, root.stat().st_mtime) == (0o711, 7)


def test_sparse_file_has_holes(root: Path) -> None:
    """A sparse entry has its size and its data where it belongs."""
    records = pax((b"GNU.sparse.size", b"8388608"), (b"GNU.sparse.map", b"0,1,4194304,2"))
    extract(root, records, file(b"s", b"abc"))
    data = (root / "s").read_bytes()
    assert (len(data), data[0:1], data[4194304:4194306]) == (8388608, b"a", b"bc")
    assert data.count(0) == 8388605
    assert (root / "s").stat().st_blocks * 512 < 1 << 20


def test_file_replaces_directory_and_back(root: Path) -> None:
    """The last entry of a name counts: other types replace, directories merge."""
    extract(
        root,
        file(b"a/b/c"),
        file(b"a", b"file"),
        file(b"x", b"file"),
        directory(b"x"),
        file(b"x/y"),
        directory(b"x", 0o700),
    )
    assert (root / "a").read_bytes() == b"file"
    assert (root / "x/y").exists()
    assert (root / "x").stat().st_mode & 0o777 == 0o700


def test_link_again_keeps_the_file(root: Path) -> None:
    """A hard link that exists already is no loss."""
    link = hardlink(b"l", b"f")
    extract(root, file(b"f", b"1"), link, link, hardlink(b"f", b"l"))
    assert (root / "f").read_bytes() == (root / "l").read_bytes() == b"1"


def test_implicit_parents_are_plain(root: Path) -> None:
    """A parent without an entry is 0755 and from 1970, so that layers are reproducible."""
    extract(root, file(b"a/b"))
    info = (root / "a").stat()
    assert (info.st_mode & 0o7777, info.st_mtime_ns) == (0o755, 0)


def test_implicit_parents_take_after_the_lower_layer(root: Path, tmp_path: Path) -> None:
    """A parent without an entry looks as in the nearest layer below that has it."""
    near, far = tmp_path / "lower", tmp_path / "lower2"
    for path, mode in ((near / "a", 0o1777), (far / "a/b", 0o750), (far / "c", 0o700)):
        path.mkdir(parents=True)
        path.chmod(mode)
    (near / "c").symlink_to("/etc")
    os.utime(near / "a", ns=(5, 5))
    done = extract(root, file(b"a/b/f"), file(b"c/f"), file(b"d/f"), lower=(near, far))
    assert not done.self_contained
    assert (root / "a").stat().st_mode & 0o7777 == 0o1777
    assert (root / "a").stat().st_mtime_ns == 5
    assert (root / "a/b").stat().st_mode & 0o777 == 0o750
    assert (root / "c").stat().st_mode & 0o777 == 0o755  # the link hides what is further down


def test_whiteout_and_opaque(root: Path) -> None:
    """Whiteouts become 0:0 devices, opaque an attribute; neither shows up as a file."""
    extract(root, file(b"d/.wh.gone", b""), file(b"e/.wh..wh..opq", b""), file(b"e/f"))
    assert is_whiteout(root / "d/gone")
    assert is_opaque(root / "e")
    assert sorted(p.name for p in root.rglob("*")) == ["d", "e", "f", "gone"]


@pytest.mark.parametrize("first", ["whiteout", "file"])
def test_whiteout_spares_this_layers_file(first: str, root: Path) -> None:
    """A whiteout speaks of lower layers, before or after the layer's own entry."""
    parts = [file(b".wh.f", b""), file(b"f", b"own")]
    extract(root, *(parts if first == "whiteout" else reversed(parts)))
    assert (root / "f").read_bytes() == b"own"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
def test_whiteout_makes_this_layers_directory_opaque(order: tuple[int, ...], root: Path) -> None:
    """A directory removed below and made again hides the lower one's content, in any order."""
    parts = [file(b".wh.d", b""), directory(b"d"), file(b"d/f")]
    extract(root, *(parts[n] for n in order))
    assert is_opaque(root / "d")
    assert (root / "d/f").exists()


@pytest.mark.parametrize("reverse", [False, True])
def test_no_whiteout_inside_opaque(reverse: bool, root: Path) -> None:
    """Overlayfs would list a whiteout inside an opaque directory, so there is none."""
    parts = [file(b"d/.wh.a", b""), file(b"d/.wh..wh..opq", b"")]
    extract(root, directory(b"d"), *(reversed(parts) if reverse else parts))
    assert is_opaque(root / "d")
    assert not list((root / "d").iterdir())


def test_implicit_parent_over_a_whiteout(root: Path) -> None:
    """A parent that an entry implies replaces the whiteout of its name, opaque."""
    extract(root, file(b".wh.d", b""), file(b"d/f"))
    assert is_opaque(root / "d")


def test_aufs_leftovers_are_left_out(root: Path) -> None:
    """Old layers carry AUFS's own files; they are counted, not made."""
    plnk = b".wh..wh.plnk"
    done = extract(root, directory(plnk), file(plnk + b"/1.2"), file(b".wh..wh.aufs"))
    assert done.skipped == {"aufs": 3}
    assert not list(root.iterdir())


def test_user_xattrs(root: Path) -> None:
    """User attributes of files and directories are kept; those of the host's policy are not."""
    attribute = pax((b"SCHILY.xattr.user.k", b"v\0w"), (b"SCHILY.xattr.security.selinux", b"x"))
    done = extract(root, attribute, file(b"f"), attribute, directory(b"d"))
    assert os.getxattr(root / "f", "user.k") == os.getxattr(root / "d", "user.k") == b"v\0w"
    assert done.skipped == {"xattr": 2}


@needs_root
def test_owners_capabilities_and_devices(root: Path) -> None:
    """As root: owners, file capabilities beside setuid, device nodes with their modes."""
    capability = b"\1\0\0\2\0\4\0\0" + bytes(12)
    extract(
        root,
        pax((b"SCHILY.xattr.security.capability", capability)),
        file(b"f", b"x", mode=0o6755, uid=5, gid=6),
        header(b"null", b"3", device=(1, 3), mode=0o666, uid=7),
        header(b"loop", b"4", device=(7, 0), mode=0o660),
        symlink(b"s", b"f", uid=8, gid=9),
        directory(b"d", 0o2775, uid=10, gid=50),
        file(b"d/f", uid=0, gid=0),
    )
    info = (root / "f").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (5, 6, 0o6755)
    assert os.getxattr(root / "f", "security.capability") == capability
    info = (root / "null").stat()
    assert stat.S_ISCHR(info.st_mode)
    assert (info.st_rdev, info.st_mode & 0o777, info.st_uid) == (os.makedev(1, 3), 0o666, 7)
    assert stat.S_ISBLK((root / "loop").stat().st_mode)
    assert (root / "s").lstat().st_uid == 8
    assert (root / "d/f").stat().st_gid == 0  # not the setgid directory's
    assert (root / "d").stat().st_mode & 0o7777 == 0o2775


def test_devices_may_be_left_out(root: Path) -> None:
    """Without devices in the policy, nodes are counted and left out."""
    done = extract(root, header(b"c", b"3", device=(1, 3)), policy=Policy(devices=False))
    assert done.skipped == {"device": 1}
    assert not (root / "c").exists()


def test_same_tree_as_the_standard_library(root: Path, tmp_path: Path) -> None:
    """An ordinary tar becomes what tarfile makes of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(Path(__file__).parents[1] / "image", "image")
    other = tmp_path / "lower"
    other.mkdir()
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
        archive.extractall(other, numeric_owner=True)
    extract(root, buffer.getvalue())
    assert tree(root).keys() == tree(other).keys()
    ours, theirs = tree(root), tree(other)
    for name, value in ours.items():
        time, other_time = value[3], theirs[name][3]
        assert isinstance(time, int) and isinstance(other_time, int)
        assert value[:3] + value[4:] == theirs[name][:3] + theirs[name][4:]
        assert abs(time - other_time) < 1000  # tarfile's times are floats
