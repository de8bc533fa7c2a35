"""Logs are read back exactly: across rotations, from the end, and while they grow."""

from __future__ import annotations

import calendar
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.runtime import logs
from pycontain.runtime.inotify import CREATED, Watch
from pycontain.runtime.logs import LogLine, parse, read


def record(number: int, text: str | None = None, stream: str = "stdout", tag: str = "F") -> bytes:
    """A record of the second `number` of 2026."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_767_225_600 + number))
    shown = f"line {number}" if text is None else text
    return f"{stamp}.{number:09d}Z {stream} {tag} {shown}\n".encode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a log would be; nothing is there."""
    return tmp_path / "log"


def texts(lines: Iterator[LogLine]) -> list[str]:
    """What the lines say."""
    return [line.text for line in lines]


@pytest.mark.parametrize("block", [7, 64, 1 << 16])
def test_rotated_files_come_first(log: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`log.2`, `log.1`, `log`: every record once and in order, whatever the block size."""
    monkeypatch.setattr(logs, "_BLOCK_BYTES", block)
    for name, numbers in (("log.2", range(3)), ("log.1", range(3, 9)), ("log", range(9, 12))):
        (log.parent / name).write_bytes(b"".join(map(record, numbers)))
    whole = [f"line {number}" for number in range(12)]
    assert texts(read(str(log))) == whole
    for tail in range(15):
        assert texts(read(str(log), tail=tail)) == whole[12 - min(tail, 12) :]


def test_a_missing_log_is_empty(log: Path) -> None:
    """A container that has not started has said nothing."""
    assert texts(read(str(log))) == [] == texts(read(str(log), tail=5))


def test_torn_and_foreign_records_are_left_out(log: Path) -> None:
    """What is no record costs no other record; the last, unfinished one is not shown yet."""
    damage = b"\n\n\xff\xfe\n2026 stdout F x\n2026-01-01T00:00:00.0Z stdin F x\n"
    log.write_bytes(record(1) + damage + record(2) + record(3)[:-1])
    assert texts(read(str(log))) == ["line 1", "line 2"]
    assert texts(read(str(log), tail=1)) == ["line 2"]


def test_streams_and_times(log: Path) -> None:
    """Selected by stream and by time, both ends included; tail counts only selected lines."""
    log.write_bytes(b"".join(record(n, stream="stderr" if n % 2 else "stdout") for n in range(10)))
    base = 1_767_225_600
    assert texts(read(str(log), stderr=False, tail=2)) == ["line 6", "line 8"]
    assert texts(read(str(log), stdout=False, since=base + 6)) == ["line 7", "line 9"]
    assert texts(read(str(log), since=base + 8.5)) == ["line 9"]
    assert texts(read(str(log), until=base + 1.5)) == ["line 0", "line 1"]
    assert texts(read(str(log), stdout=False, stderr=False, tail=3)) == []


def test_pieces_are_counted_with_their_line(log: Path) -> None:
    """A long line in pieces is one line for tail, also when its end has not come."""
    log.write_bytes(
        record(1)
        + record(2, "a", tag="P")
        + record(2, "b", tag="P")
        + record(2, "c")
        + record(3, "d", tag="P")
    )
    assert texts(read(str(log), tail=1)) == ["d"]
    assert texts(read(str(log), tail=2)) == ["a", "b", "c", "d"]
    assert [line.partial for line in read(str(log), tail=2)] == [True, True, False, True]


@given(st.datetimes(), st.integers(0, 999_999_999), st.binary(max_size=30))
def test_records_round_trip(when: object, nsec: int, data: bytes) -> None:
    """Every byte but a newline, every nanosecond."""
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
    data = data.replace(b"\n", b"")
    line = parse(f"{stamp}.{nsec:09d}Z stderr F ".encode() + data)
    assert line is not None and line.data == data and line.stream == "stderr"
    seconds = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
    assert line.time_nsec == seconds * 1_000_000_000 + nsec
    if seconds > 0:
        assert line.timestamp == f"{stamp}.{nsec:09d}Z"


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_nothing_in_a_file_raises(data: bytes) -> None:
    """A damaged log is read as far as it can be."""
    for piece in data.split(b"\n"):
        assert parse(piece) is None or b" " in piece


def rotate(log: Path, keep: int) -> None:
    """As the monitor does it: log.N-1 to log.N, ..., log to log.1, then a new log."""
    for number in range(keep, 0, -1):
        older = log.parent / (f"log.{number - 1}" if number > 1 else "log")
        if older.exists():
            os.rename(older, log.parent / f"log.{number}")
    log.touch()


def test_following_loses_nothing_across_rotations(log: Path) -> None:
    """A reader that is slower than the rotation still sees each record of kept files once."""
    state = log.parent / "state"
    state.mkdir()
    log.touch()
    count = 400

    def write() -> None:
        for number in range(count):
            with open(log, "ab") as file:
                half = len(record(number)) // 2
                file.write(record(number)[:half])
                file.flush()
                file.write(record(number)[half:])
            if number % 7 == 6:
                rotate(log, 100)
        (state / "exit").touch()

    writer = threading.Thread(target=write)
    found = []
    lines = read(str(log), follow=True, state_dir=str(state))
    writer.start()
    for line in lines:
        found.append(line.text)
    writer.join()
    assert found == [f"line {number}" for number in range(count)]


def test_following_starts_before_the_log_and_ends_with_the_container(log: Path) -> None:
    """Tail and follow together: old lines, new lines, and the end when `exit` appears."""
    state = log.parent / "state"
    state.mkdir()
    got: list[str] = []
    seen = threading.Event()

    def follow() -> None:
        for line in read(str(log), follow=True, tail=10, state_dir=str(state)):
            got.append(line.text)
            seen.set()

    reader = threading.Thread(target=follow)
    reader.start()
    log.write_bytes(record(1))
    assert seen.wait(10)
    with open(log, "ab") as file:
        file.write(record(2))
    (state / "exit").touch()
    reader.join(10)
    assert got == ["line 1", "line 2"]


@pytest.mark.parametrize("how", ["removed", "already exited", "stop_fd", "until"])
def test_following_always_ends(log: Path, how: str) -> None:
    """By removal of the container, at once if it had exited, by the caller, or by `until`."""
    state = log.parent / "state"
    if how != "removed":
        state.mkdir()
    log.write_bytes(record(1))
    reader, writer = os.pipe()
    try:
        if how == "already exited":
            (state / "exit").touch()
        if how == "stop_fd":
            os.write(writer, b"x")
        until = time.time() if how == "until" else None
        lines = read(str(log), follow=True, state_dir=str(state), stop_fd=reader, until=until)
        assert texts(lines) == ["line 1"]
    finally:
        os.close(reader)
        os.close(writer)


def test_no_descriptor_is_left(log: Path) -> None:
    """An abandoned iteration closes what it opened."""
    log.write_bytes(record(1) + record(2))
    before = len(os.listdir("/proc/self/fd"))
    lines = read(str(log), follow=True, state_dir=str(log.parent))
    assert next(lines).text == "line 1"
    lines.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_watch(tmp_path: Path) -> None:
    """A change before the wait counts; a missing directory is no error."""
    with Watch() as watch:
        assert not watch.add(str(tmp_path / "missing"), CREATED)
        assert watch.add(str(tmp_path), CREATED)
        assert not watch.wait(timeout_usec=0)
        (tmp_path / "x").touch()
        assert watch.wait() and not watch.wait(timeout_usec=0)
