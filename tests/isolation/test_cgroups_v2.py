"""The v2 tree's life against a fake kernel: what is made, written, undone, and in which order."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.errors import AlreadyExists, InvalidInput, InvalidSpec, KernelError, Unsupported
from pycontain.isolation import cgroups_fs, cgroups_v2
from pycontain.isolation.cgroups import Cgroup, Layout, Mode, children, remove_parent, unenforceable
from pycontain.oci import IoLimit, Resources

ALL = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
CORE = {
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.freeze": "0",
    "cgroup.kill": "",
    "cpu.stat": "usage_usec 7\nuser_usec 5\nsystem_usec 2\n",
}
FILES = {
    "cpu": {"cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.weight": "100", "cpu.idle": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "0-3"},
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.high": "max",
        "memory.low": "0",
        "memory.min": "0",
        "memory.oom.group": "0",
        "memory.peak": "4096\n",
        "memory.current": "1024\n",
        "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\n",
    },
    "pids": {"pids.max": "max", "pids.events": "max 0\n", "pids.current": "1\n"},
    "io": {"io.max": "", "io.weight": "default 100\n", "io.stat": ""},
    "hugetlb": {"hugetlb.2MB.max": "max"},
}


class FakeKernel:
    """A v2 tree on tmpfs: mkdir brings files, subtree_control adds words, rmdir drops files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []  # "mkdir x", "write x/file text", "rmdir x"
        self.refuse: dict[str, int] = {}  # file name -> errno of a write
        self.absent: set[str] = set()  # files that this kernel lacks
        self.real_mkdir, self.real_rmdir = os.mkdir, os.rmdir
        self._populate(root, ALL)

    def _populate(self, directory: Path, controllers: tuple[str, ...]) -> None:
        files = dict(CORE, **{"cgroup.controllers": " ".join(controllers)})
        for controller in controllers:
            files.update(FILES[controller])
        for name, text in files.items():
            new = not (directory / name).exists() or name == "cgroup.controllers"
            if new and name not in self.absent:
                (directory / name).write_text(text)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self.real_mkdir(path, mode)
        self.log.append(f"mkdir {self._name(path)}")
        parent = Path(path).parent
        given = (parent / "cgroup.subtree_control").read_text().split()
        self._populate(Path(path), tuple(given))

    def rmdir(self, path: str) -> None:
        directory = Path(path)
        if directory.is_dir() and not any(entry.is_dir() for entry in directory.iterdir()):
            for entry in directory.iterdir():
                entry.unlink()
        self.real_rmdir(path)
        self.log.append(f"rmdir {self._name(path)}")

    def write(self, directory: str, file: str, text: str) -> None:
        path = Path(directory) / file
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if file in self.refuse:
            raise OSError(self.refuse[file], os.strerror(self.refuse[file]), str(path))
        self.log.append(f"write {self._name(directory)}/{file} {text}")
        if file == "cgroup.subtree_control":
            words = set(path.read_text().split()) | {word[1:] for word in text.split()}
            path.write_text(" ".join(sorted(words)))
            for entry in Path(directory).iterdir():
                if entry.is_dir():
                    self._populate(entry, tuple(sorted(words)))
        elif file == "cgroup.freeze":
            path.write_text(text)
            (Path(directory) / "cgroup.events").write_text(f"populated 1\nfrozen {text}\n")
        elif file == "cgroup.procs":
            source = next(p for p in self.root.rglob("cgroup.procs") if text in p.read_text())
            source.write_text(source.read_text().replace(f"{text}\n", ""))
            path.write_text(path.read_text() + f"{text}\n")
        else:
            path.write_text(text)

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """The fake, in the place of the calls that make, write and remove."""
    fake = FakeKernel(tmp_path)
    monkeypatch.setattr(os, "mkdir", fake.mkdir)
    monkeypatch.setattr(os, "rmdir", fake.rmdir)
    monkeypatch.setattr(cgroups_fs, "write", fake.write)
    yield fake
    monkeypatch.undo()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """All controllers on v2."""
    return Layout(Mode.UNIFIED, str(tmp_path), frozenset(ALL))


THREE = Resources(
    memory_max_bytes=1 << 20, memory_oom_group=False, cpu_quota_usec=50_000, pids_max=9
)


def test_second_cgroup_costs_one_mkdir_and_its_limits(kernel: FakeKernel, layout: Layout) -> None:
    """Once the parent is prepared, nothing but mkdir and one write per limit is done."""
    Cgroup.create(layout, "pycontain/a", THREE).close()
    kernel.log.clear()
    Cgroup.create(layout, "pycontain/b", THREE).close()
    assert kernel.log == [
        "mkdir pycontain/b",
        "write pycontain/b/memory.max 1048576",
        "write pycontain/b/cpu.max 50000 100000",
        "write pycontain/b/pids.max 9",
    ]


def test_controllers_are_handed_down_from_the_root(kernel: FakeKernel, layout: Layout) -> None:
    """Accounting controllers always, others when a limit needs them."""
    Cgroup.create(layout, "pycontain/a", THREE).close()
    for directory in (kernel.root, kernel.root / "pycontain"):
        given = (directory / "cgroup.subtree_control").read_text().split()
        assert given == ["cpu", "io", "memory", "pids"]
    Cgroup.create(layout, "pycontain/b", Resources(hugetlb_max=(("2MB", 0),))).close()
    given = (kernel.root / "pycontain/cgroup.subtree_control").read_text().split()
    assert given == ["cpu", "hugetlb", "io", "memory", "pids"]


def test_pruned_parent_is_made_again(kernel: FakeKernel, layout: Layout) -> None:
    """Another process may remove the empty parent between two creations."""
    first = Cgroup.create(layout, "pycontain/a", THREE)
    first.remove()
    remove_parent(layout, "pycontain")
    assert not (kernel.root / "pycontain").exists()
    Cgroup.create(layout, "pycontain/b", THREE).close()
    assert (kernel.root / "pycontain/b/pids.max").read_text() == "9"


def test_parent_made_again_by_another_with_less(kernel: FakeKernel, layout: Layout) -> None:
    """If it handed down fewer controllers than we remember, they are handed down now."""
    Cgroup.create(layout, "pycontain/a", THREE).remove()
    remove_parent(layout, "pycontain")
    (kernel.root / "cgroup.subtree_control").write_text("")
    kernel.mkdir(str(kernel.root / "pycontain"))
    Cgroup.create(layout, "pycontain/b", THREE).close()
    assert (kernel.root / "pycontain/b/pids.max").read_text() == "9"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EINVAL, InvalidSpec), (errno.EOPNOTSUPP, Unsupported), (errno.EIO, KernelError)],
)
def test_refused_write_undoes_all(
    kernel: FakeKernel, layout: Layout, code: int, expected: type[Exception]
) -> None:
    """The last of several writes fails: no directory and no fd remains, the option is named."""
    before = set(os.listdir("/proc/self/fd"))
    kernel.refuse["pids.max"] = code
    with pytest.raises(expected, match="pids"):
        Cgroup.create(layout, "pycontain/a", THREE)
    assert children(layout, "pycontain") == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_interrupt_undoes_all(
    kernel: FakeKernel, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two writes leaves no directory."""

    def interrupted(directory: str, file: str, text: str) -> None:
        if file == "pids.max":
            raise KeyboardInterrupt
        kernel.write(directory, file, text)

    monkeypatch.setattr(cgroups_fs, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Cgroup.create(layout, "pycontain/a", THREE)
    assert children(layout, "pycontain") == []


def test_taken_name_is_left_alone(kernel: FakeKernel, layout: Layout) -> None:
    """AlreadyExists, and the other's directory is neither removed nor changed."""
    Cgroup.create(layout, "pycontain/a", THREE).close()
    with pytest.raises(AlreadyExists):
        Cgroup.create(layout, "pycontain/a", Resources(pids_max=1))
    assert (kernel.root / "pycontain/a/pids.max").read_text() == "9"


def test_missing_controller_is_refused_before_anything(kernel: FakeKernel, tmp_path: Path) -> None:
    """A host without the controller: Unsupported that names option and controller; nothing made."""
    poor = Layout(Mode.UNIFIED, str(tmp_path), frozenset(("pids",)))
    error = unenforceable(poor, THREE)
    assert error is not None and "memory" in error.feature and "memory" in error.needs
    with pytest.raises(Unsupported, match="memory"):
        Cgroup.create(poor, "pycontain/a", THREE)
    assert kernel.log == []
    assert unenforceable(poor, Resources(pids_max=3)) is None


def test_no_cgroups_and_no_limits_is_an_empty_shell() -> None:
    """A host without cgroups runs containers without limits; a limit is Unsupported."""
    nowhere = Layout(Mode.NONE)
    shell = Cgroup.create(nowhere, "pycontain/a")
    assert (shell.dir_fd, shell.join_fds, shell.kill_path, shell.paths) == (-1, (), None, ())
    assert shell.exit_ops() == []
    assert shell.pids() == []
    assert shell.stat().cpu_usec is None
    shell.remove()
    with pytest.raises(Unsupported, match="pids"):
        Cgroup.create(nowhere, "pycontain/a", Resources(pids_max=3))
    with pytest.raises(Unsupported, match="freeze"):
        shell.freeze()


def test_forbidden_tree_without_limits_is_an_empty_shell(
    kernel: FakeKernel, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An undelegated tree (rootless) fails only who asked for a limit."""

    def denied(path: str, mode: int = 0o777) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", denied)
    assert not Cgroup.create(layout, "pycontain/a").exists
    with pytest.raises(Unsupported, match="cgroup"):
        Cgroup.create(layout, "pycontain/a", THREE)


def test_swap_file_missing(
    kernel: FakeKernel, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without swap accounting a swap limit is fine on a host without swap, else Unsupported."""
    kernel.absent.add("memory.swap.max")
    limits = Resources(memory_max_bytes=1 << 20, memory_swap_max_bytes=0)
    monkeypatch.setattr(cgroups_v2, "host_swaps", lambda: False)
    Cgroup.create(layout, "pycontain/a", limits).remove()
    monkeypatch.setattr(cgroups_v2, "host_swaps", lambda: True)
    with pytest.raises(Unsupported, match="memory_swap"):
        Cgroup.create(layout, "pycontain/a", limits)


def test_bfq_weight_where_io_weight_is_missing(kernel: FakeKernel, layout: Layout) -> None:
    """BFQ's own file gets the converted weight; without either it is Unsupported."""
    kernel.absent.add("io.weight")
    with pytest.raises(Unsupported, match="io_weight"):
        Cgroup.create(layout, "pycontain/a", Resources(io_weight=10_000))
    FILES["io"]["io.bfq.weight"] = "100"
    try:
        Cgroup.create(layout, "pycontain/b", Resources(io_weight=10_000)).close()
    finally:
        del FILES["io"]["io.bfq.weight"]
    assert (kernel.root / "pycontain/b/io.bfq.weight").read_text() == "1000"


def test_cpus_that_the_parent_lacks_are_refused(kernel: FakeKernel, layout: Layout) -> None:
    """v2 would take them and use others; and usable ones are taken."""
    with pytest.raises(InvalidSpec, match="cpuset_cpus"):
        Cgroup.create(layout, "pycontain/a", Resources(cpuset_cpus="2-4"))
    Cgroup.create(layout, "pycontain/a", Resources(cpuset_cpus="2-3")).close()
    assert (kernel.root / "pycontain/a/cpuset.cpus").read_text() == "2-3"


def test_update_writes_only_what_is_given(kernel: FakeKernel, layout: Layout) -> None:
    """Fields that are None, and the OOM group, stay as they are."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    kernel.log.clear()
    cgroup.update(Resources(pids_max=-1, memory_max_bytes=2 << 20))
    cgroup.close()
    writes = [line for line in kernel.log if "subtree" not in line]
    assert writes == [
        "write pycontain/a/memory.max 2097152",
        "write pycontain/a/pids.max max",
    ]


def test_failed_update_is_rolled_back(kernel: FakeKernel, layout: Layout) -> None:
    """Limits written before the refused one get their old text again, devices their old line."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    (kernel.root / "pycontain/a/io.max").write_text("8:0 rbps=max wbps=5 riops=max wiops=max\n")
    kernel.refuse["hugetlb.2MB.max"] = errno.EINVAL
    with pytest.raises(InvalidSpec, match="hugetlb_max"):
        cgroup.update(
            Resources(
                memory_max_bytes=2 << 20,
                io_max=(IoLimit(8, 0, write_bytes_per_sec=9), IoLimit(8, 16, read_ops_per_sec=9)),
                hugetlb_max=(("2MB", 0),),
            )
        )
    cgroup.close()
    assert (kernel.root / "pycontain/a/memory.max").read_text() == "1048576"
    undone = [line for line in kernel.log if "io.max" in line][2:]
    assert undone[0] == "write pycontain/a/io.max 8:16 rbps=max wbps=max riops=max wiops=max"
    assert undone[1] == "write pycontain/a/io.max 8:0 rbps=max wbps=5 riops=max wiops=max"


def test_exec_without_limits_is_one_directory(kernel: FakeKernel, layout: Layout) -> None:
    """Nobody is moved, no controller is enabled."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    kernel.log.clear()
    sub = cgroup.sub("e1")
    assert kernel.log == ["mkdir pycontain/a/e1"]
    assert sub.kill_path == str(kernel.root / "pycontain/a/e1/cgroup.kill")
    sub.close()
    cgroup.close()


def test_exec_with_limits_splits_once(kernel: FakeKernel, layout: Layout) -> None:
    """Frozen, moved into `main`, controllers enabled, thawed; the container's limits stay."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    (kernel.root / "pycontain/a/cgroup.procs").write_text("11\n12\n")
    kernel.log.clear()
    sub = cgroup.sub("e1", Resources(pids_max=2))
    assert [line.removeprefix("write pycontain/a/") for line in kernel.log] == [
        "cgroup.freeze 1",
        "mkdir pycontain/a/main",
        "main/cgroup.procs 11",
        "main/cgroup.procs 12",
        "cgroup.subtree_control +cpu +io +memory +pids",
        "cgroup.freeze 0",
        "mkdir pycontain/a/e1",
        "e1/pids.max 2",
    ]
    kernel.log.clear()
    cgroup.sub("e2", Resources(pids_max=3)).close()
    assert kernel.log == ["mkdir pycontain/a/e2", "write pycontain/a/e2/pids.max 3"]
    sub.close()
    cgroup.close()


def test_paused_container_stays_paused_when_split(kernel: FakeKernel, layout: Layout) -> None:
    """Splitting thaws only what it froze."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    cgroup.freeze()
    kernel.log.clear()
    cgroup.sub("e1", Resources(pids_max=2)).close()
    assert not any("cgroup.freeze" in line for line in kernel.log)
    cgroup.close()


def test_removal_takes_everything_below(kernel: FakeKernel, layout: Layout) -> None:
    """Deepest first, twice without an error, and the parent stays for the others."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    cgroup.sub("e1", Resources(pids_max=2)).close()
    cgroup.remove()
    cgroup.remove()
    assert children(layout, "pycontain") == []
    assert (kernel.root / "pycontain").is_dir()


def test_stat_reads_what_there_is(kernel: FakeKernel, layout: Layout) -> None:
    """Values of present files, None for absent ones, and fresh ones at each call."""
    cgroup = Cgroup.create(layout, "pycontain/a", THREE)
    usage = cgroup.stat()
    assert (usage.cpu_usec, usage.memory_peak_bytes, usage.memory_max_events) == (7, 4096, 3)
    assert usage.memory_pressure is None
    (kernel.root / "pycontain/a/memory.current").write_text("2048\n")
    assert cgroup.stat().memory_current_bytes == 2048
    cgroup.close()
    cgroup.close()


def test_exit_ops(kernel: FakeKernel, layout: Layout) -> None:
    """Files of this kernel only; then the kill; then directories, `main` before the container."""
    from pycontain._native import C

    with Cgroup.create(layout, "pycontain/a", THREE) as cgroup:
        ops = cgroup.exit_ops()
    base = str(kernel.root / "pycontain/a").encode()
    read = [label for code, _, label in ops if code == C.PYC_EXIT_READ]
    assert read == [b"cpu.stat", b"memory.peak", b"memory.events", b"pids.events", b"io.stat"]
    assert ops[len(read) :] == [
        (C.PYC_EXIT_WRITE, base + b"/cgroup.kill", b"1"),
        (C.PYC_EXIT_RMDIR, base + b"/main", b""),
        (C.PYC_EXIT_RMDIR, base, b""),
    ]


@pytest.mark.parametrize("name", ["", "/", "a/../b", "..", "a//b", "a\0b", "x" * 256])
def test_name_can_not_leave_the_tree(layout: Layout, name: str) -> None:
    """Such a path is refused before the kernel sees it."""
    with pytest.raises(InvalidInput, match="cgroup"):
        Cgroup.create(layout, name)


@pytest.mark.parametrize("name", ["main", "a/b", ".."])
def test_name_of_an_exec(kernel: FakeKernel, layout: Layout, name: str) -> None:
    """An exec's cgroup is a direct child and never the leaf of the container's processes."""
    with Cgroup.create(layout, "pycontain/a") as cgroup, pytest.raises(InvalidInput):
        cgroup.sub(name)
