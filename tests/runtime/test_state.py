"""The state store: atomic, shared, and damaged one container at a time."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain import _native
from pycontain.errors import AlreadyExists, ContainerNotFound, InvalidInput, WrongState
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.names import check_name, is_name, new_id, random_name
from pycontain.runtime.state import StateStore, Status

A, B = "a" * 64, "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """A store in a new directory."""
    made = StateStore(str(tmp_path / "state"))
    yield made
    made.close()


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def write_live(directory: str, *, pid: int, ticks: int, status: int) -> None:
    """A `live` file as the monitor leaves it."""
    record = bytearray(
        _native.encode_record(
            flags=0,
            id=A,
            state_dir=directory,
            log_path="",
            kill_path="",
            log_max_bytes=0,
            log_max_files=0,
            timeout_usec=0,
            exit_ops=[],
        )
    )
    view = _native.ffi.cast("struct pyc_record *", _native.ffi.from_buffer(record))
    view.pid, view.pid_start_ticks, view.status = pid, ticks, status
    Path(directory, "live").write_bytes(record)


def test_create_load_remove(store: StateStore) -> None:
    """A container is found by id, name and unique prefix until it is removed; twice is fine."""
    path = store.create(A, "web", {"name": "web", "x": [1]})
    assert path == store.path(A) and stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert store.load(A) == {"name": "web", "x": [1]}
    for text in (A, "web", "a", "aaaa"):
        assert store.resolve(text) == A
    assert [(entry.id, entry.path) for entry in store.ls()] == [(A, path)]
    store.remove(A)
    store.remove(A)
    assert store.ls() == [] and os.listdir(f"{store.root}/names") == []
    for call in (store.load, store.resolve, store.status):
        with pytest.raises(ContainerNotFound):
            call(A)


def test_the_root_is_private(tmp_path: Path) -> None:
    """0700 whatever it was; a link in its place is refused."""
    (tmp_path / "open").mkdir(mode=0o777)
    StateStore(str(tmp_path / "open")).close()
    assert stat.S_IMODE(os.stat(tmp_path / "open").st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(OSError, match="Not a directory"):
        StateStore(str(tmp_path / "link"))


def test_ids_and_names_are_taken_once(store: StateStore) -> None:
    """A second container of the same name or id is refused, and nothing of it stays."""
    store.create(A, "web", b"{}")
    with pytest.raises(AlreadyExists, match="'web' is taken by container aaaaaaaaaaaa"):
        store.create(B, "web", b"{}")
    with pytest.raises(AlreadyExists, match="id"):
        store.create(A, "other", b"{}")
    assert store.ids() == [A]


def test_a_name_without_a_container_is_free(store: StateStore) -> None:
    """What a crash left does not block the name."""
    os.symlink(B, f"{store.root}/names/web")
    with pytest.raises(ContainerNotFound):
        store.resolve("web")
    store.create(A, "web", b'{"name":"web"}')
    assert store.resolve("web") == A


def test_one_of_many_gets_the_name(store: StateStore) -> None:
    """Threads that want the same stale name at once: exactly one wins."""
    os.symlink(B, f"{store.root}/names/web")
    barrier = threading.Barrier(8)
    results: list[str] = []

    def create(container_id: str) -> None:
        barrier.wait()
        try:
            store.create(container_id, "web", b'{"name":"web"}')
            results.append(container_id)
        except AlreadyExists:
            pass

    threads = [threading.Thread(target=create, args=(new_id(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1 and store.resolve("web") == results[0] and store.ids() == results


def test_near_names_are_suggested(store: StateStore) -> None:
    """A typing error is answered with what was probably meant; two prefixes are not one."""
    store.create(A, "database", b"{}")
    store.create(B, "", b"{}")
    with pytest.raises(ContainerNotFound, match=r"'databse' \(there is database\)"):
        store.resolve("databse")
    with pytest.raises(ContainerNotFound, match="the start of 2"):
        store.resolve("a")
    with pytest.raises(ContainerNotFound):
        store.resolve("../names")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, None])
def test_a_damaged_state_is_only_its_own_containers(
    store: StateStore, damage: bytes | None
) -> None:
    """Listing goes on, the status is unknown, and removal works, the name included."""
    store.create(A, "bad", b'{"name":"bad"}')
    store.create(B, "good", b'{"name":"good"}')
    file = Path(store.path(A), "state.json")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert [(e.id, e.document) for e in store.ls()] == [(A, None), (B, {"name": "good"})]
    with pytest.raises(WrongState) as caught:
        store.load(A)
    assert caught.value.status == Status.UNKNOWN == store.status(A)
    store.remove(A)
    assert store.ids() == [B] and os.listdir(f"{store.root}/names") == ["good"]


def test_links_in_a_container_are_not_followed(store: StateStore, tmp_path: Path) -> None:
    """Neither for reading nor for removal."""
    (tmp_path / "secret").write_text('{"secret": 1}')
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").touch()
    path = store.create(A, "", b"{}")
    os.unlink(f"{path}/state.json")
    os.symlink(tmp_path / "secret", f"{path}/state.json")
    os.symlink(tmp_path / "dir", f"{path}/dir")
    with pytest.raises(WrongState):
        store.load(A)
    store.remove(A)
    assert (tmp_path / "dir/file").exists()


def test_updates_do_not_overwrite_each_other(store: StateStore) -> None:
    """Every increment of many threads counts, and no reader sees half a document."""
    store.create(A, "", {"n": 0})

    def count() -> None:
        for _ in range(20):
            store.update(A, lambda document: {"n": document["n"] + 1})
            store.load(A)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load(A) == {"n": 80}
    assert os.listdir(store.path(A)) == ["state.json"]


def test_rename(store: StateStore) -> None:
    """The new name replaces the old one; a taken one changes nothing."""
    store.create(A, "old", {"name": "old"})
    store.create(B, "taken", {"name": "taken"})
    with pytest.raises(AlreadyExists):
        store.rename(A, "taken")
    store.rename(A, "new")
    store.rename(A, "new")
    assert store.resolve("new") == A and store.load(A)["name"] == "new"
    with pytest.raises(ContainerNotFound):
        store.resolve("old")


def test_status_follows_the_monitors_files(store: StateStore) -> None:
    """created, running, paused, exited; a process that is not the recorded one has ended."""
    path = store.create(A, "", b"{}")
    pid, ticks = os.getpid(), start_ticks(os.getpid())
    assert store.status(A) == Status.CREATED
    write_live(path, pid=pid, ticks=ticks, status=_native.C.PYC_ST_PARKED)
    assert store.status(A) == Status.CREATED
    write_live(path, pid=pid, ticks=ticks, status=_native.C.PYC_ST_RUNNING)
    assert store.status(A) == store.status(A, lambda: False) == Status.RUNNING
    assert store.status(A, lambda: True) == Status.PAUSED
    live = store.read_live(A)
    assert live is not None and live.pid == pid
    write_live(path, pid=pid, ticks=ticks + 1, status=_native.C.PYC_ST_RUNNING)
    assert store.status(A) == Status.EXITED
    Path(path, "live").write_bytes(b"short")
    assert store.status(A) == Status.UNKNOWN
    Path(path, "exit").write_bytes(b"x")
    assert store.status(A) == Status.EXITED and store.read_exit(A) == b"x"


def test_is_alive() -> None:
    """This process is; one with a pid beyond all pids is not."""
    ticks = start_ticks(os.getpid())
    assert is_alive(os.getpid(), ticks) and is_alive(os.getpid(), 0)
    assert not is_alive(os.getpid(), ticks + 1)
    assert not is_alive(2**22 + 1, 0)


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a" * 65, "a b", "é", "a\n", "..", "a\0"])
def test_bad_names(store: StateStore, name: str) -> None:
    """A name is one safe component of a path."""
    with pytest.raises(InvalidInput, match=r"^name: "):
        check_name(name)
    with pytest.raises(InvalidInput, match=r"^id: "):
        store.create(name, "", b"{}")
    if name:
        with pytest.raises(InvalidInput, match=r"^name: "):
            store.create(A, name, b"{}")
    assert store.ids() == []


@given(st.text(max_size=70))
def test_a_name_is_never_a_path(name: str) -> None:
    """Whatever passes has no slash, is not hidden and fits a hostname's alphabet and a bit."""
    if is_name(name):
        assert "/" not in name and name not in (".", "..") and name.isascii()
        assert os.path.basename(name) == name and name.isprintable()


def test_made_up_names_are_names() -> None:
    """Ids are 64 hex digits and differ; random names have two words."""
    assert len(new_id()) == 64 and new_id() != new_id() and int(new_id(), 16) >= 0
    for _ in range(20):
        assert check_name(random_name()).count("_") == 1
