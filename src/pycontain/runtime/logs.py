"""A container's log, read back: its lines across rotations, from the end, and as they come.

The monitor writes the container-runtime (CRI) format: `<RFC 3339 time> <stream> <P|F> <bytes>\n`,
P for a piece of a line that goes on in the stream's next record. `log` is rotated to `log.1`,
`log.1` to `log.2` and so on. Source: Kubernetes CRI, kuberuntime logs.go's description.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from typing import NamedTuple

from pycontain.errors import KernelError
from pycontain.runtime.inotify import CREATED, DELETED, MODIFIED, Watch
from pycontain.values import mutable

__all__ = ["LogLine", "Pause", "read", "steps"]

_BLOCK_BYTES = 1 << 16
_ATTEMPTS = 1000  # a rotation is a few renames
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LogLine(NamedTuple):
    """One record: a line without its newline, or a piece of one (`partial`)."""

    time_nsec: int  # since the epoch
    stream: str  # stdout or stderr
    data: bytes
    partial: bool

    @property
    def text(self) -> str:
        """The bytes as UTF-8; what is none is shown as U+FFFD."""
        return self.data.decode("utf-8", "replace")

    @property
    def timestamp(self) -> str:
        """The time in RFC 3339, UTC, with nanoseconds, as docker prints it."""
        import time

        seconds, nsec = divmod(self.time_nsec, 1_000_000_000)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nsec:09d}Z"


@mutable
class Pause:
    """Nothing more is in the log now. Wait on `watch`, for `timeout_usec` unless that is -1.

    Whoever waited sets `over` if it is not to go on.
    """

    watch: Watch
    timeout_usec: int
    over: bool = False


def read(
    path: str,
    *,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
    follow: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    state_dir: str | None = None,
    stop_fd: int = -1,
) -> Iterator[LogLine]:
    """The records of the log `path` and of its rotated files, oldest first.

    Args:
        since, until: seconds since the epoch; both ends included.
        tail: only that many lines from the end (pieces of a line count once).
        follow: go on with new records until the container has exited, across rotations. No polling.
        state_dir: where the monitor writes `exit`; without it following ends only by `stop_fd`.
        stop_fd: following ends when this is readable; it stays the caller's.

    A record that is being written is left for the next read. A log that does not exist is empty.
    """
    with closing(
        steps(path, since=since, until=until, tail=tail, follow=follow, stdout=stdout,
              stderr=stderr, state_dir=state_dir)
    ) as found:  # fmt: skip
        for step in found:
            if isinstance(step, Pause):
                step.over = not step.watch.wait(stop_fd, step.timeout_usec)
            else:
                yield step


def steps(
    path: str,
    *,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
    follow: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    state_dir: str | None = None,
) -> Generator[LogLine | Pause, None, None]:
    """As `read`, for who waits in other ways: yields a `Pause` wherever `read` would wait."""
    streams = {name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted}
    first_nsec = None if since is None else round(since * 1_000_000_000)
    last_nsec = None if until is None else round(until * 1_000_000_000)
    with closing(_records(path, tail, streams, follow, state_dir, last_nsec)) as records:
        for line in records:
            if isinstance(line, Pause):
                yield line
                continue
            if last_nsec is not None and line.time_nsec > last_nsec:
                if not follow:
                    continue  # the streams' records may be out of order by a little
                return
            if line.stream in streams and (first_nsec is None or line.time_nsec >= first_nsec):
                yield line


def _records(
    path: str,
    tail: int | None,
    streams: set[str],
    follow: bool,
    state_dir: str | None,
    last_nsec: int | None,
) -> Generator[LogLine | Pause, None, None]:
    """All records from where `tail` says; owns the descriptors of the files meanwhile."""
    with ExitStack() as stack:
        # Watched before the first look, so that no change falls in between.
        watch = stack.enter_context(Watch()) if follow else None
        if watch is not None:
            watch.add(os.path.dirname(path), MODIFIED | CREATED)
            if state_dir is not None:
                watch.add(state_dir, CREATED | DELETED)
        files = _Files(path)
        stack.callback(files.close)
        if tail is not None:
            files.seek_tail(tail, streams)
        while True:
            # Asked before reading: what was written before the exit is read after it.
            ended = watch is None or _has_exited(state_dir)
            yield from files.read()
            if ended or watch is None:
                return
            pause = Pause(watch, _time_left(last_nsec))
            yield pause
            if pause.over:
                yield from files.read()
                return


def _time_left(last_nsec: int | None) -> int:
    """Microseconds until `last_nsec`; -1 if there is no end."""
    import time

    return -1 if last_nsec is None else max(0, last_nsec - time.time_ns()) // 1000


def _has_exited(state_dir: str | None) -> bool:
    """Whether the container has ended, or is gone with its directory."""
    if state_dir is None:
        return False
    try:
        os.stat(f"{state_dir}/exit", follow_symlinks=False)
    except FileNotFoundError:
        return not os.path.isdir(state_dir)
    return True


class _Files:
    """The log's files, oldest first, open, with a position; being open keeps deleted ones alive."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fds = _open_files(path)
        self._offset = 0  # in the first of _fds; the others are unread
        self._rest = b""  # an unfinished record at the end of what was read

    def close(self) -> None:
        """All files are closed."""
        while self._fds:
            os.close(self._fds.pop())

    def read(self) -> Iterator[LogLine]:
        """Everything from the position on to the end of the newest file."""
        while True:
            while self._fds and (block := os.pread(self._fds[0], _BLOCK_BYTES, self._offset)):
                self._offset += len(block)
                *records, self._rest = (self._rest + block).split(b"\n")
                for record in records:
                    line = parse(record)
                    if line is not None:
                        yield line
            if len(self._fds) > 1:
                os.close(self._fds.pop(0))
                self._offset, self._rest = 0, b""
            elif not self.advance():
                return

    def advance(self) -> bool:
        """Whether there are files newer than the last one; they are open then."""
        if self._fds and _identity(self._fds[-1]) == _file_at(self._path):
            return False
        fresh = _open_files(self._path)
        if not self._fds:
            self._fds = fresh
            return bool(fresh)
        known = _identity(self._fds[-1])
        # Not among them: rotated away meanwhile, so all that is there is newer.
        place = next((i for i, fd in enumerate(fresh) if _identity(fd) == known), -1)
        for fd in fresh[: place + 1]:
            os.close(fd)
        self._fds += fresh[place + 1 :]
        return place + 1 < len(fresh)

    def seek_tail(self, count: int, streams: set[str]) -> None:
        """The position is where the last `count` lines of `streams` begin.

        Pieces count with the line that they end in; where both streams have unfinished lines at
        the same time, the first may be shown without its beginning.
        """
        newest_of: set[str] = set()
        for index in range(len(self._fds) - 1, -1, -1):
            for start, record in _backwards(self._fds[index]):
                line = parse(record)
                if line is None or line.stream not in streams:
                    continue
                if not line.partial or line.stream not in newest_of:
                    newest_of.add(line.stream)
                    if count == 0:
                        for fd in self._fds[:index]:
                            os.close(fd)
                        del self._fds[:index]
                        self._offset = start + len(record) + 1
                        return
                    count -= 1


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _open_files(path: str) -> list[int]:
    """Descriptors of the log's files, oldest first; the caller closes them.

    A rotation meanwhile would show one file twice or hide one, so the names must mean the same
    files before and after. In the middle of a rotation a number is missing; the order is right even
    then. Open files keep their inode, so no number is reused.
    """
    fds: list[int] = []
    for _ in range(_ATTEMPTS):
        before = _scan(path)
        numbers = sorted(before, reverse=True)
        for number in numbers:
            try:
                fds.append(os.open(f"{path}.{number}" if number else path, _OPEN_FLAGS))
            except FileNotFoundError:
                break
        opened = [_identity(fd) for fd in fds]
        if opened == [before[n] for n in numbers] and _scan(path) == before:
            return fds
        while fds:
            os.close(fds.pop())
    raise KernelError(errno.EAGAIN, f'open("{path}")', hint="it is rotated all the time")


def _scan(path: str) -> dict[int, tuple[int, int]]:
    """Which file each number is; 0 is the log itself."""
    directory, name = os.path.split(path)
    found = {}
    try:
        names = os.listdir(directory or ".")
    except FileNotFoundError:
        return {}
    for each in names:
        suffix = each[len(name) + 1 :]
        if each == name or (each.startswith(name + ".") and suffix.isdigit()):
            identity = _file_at(f"{directory}/{each}" if directory else each)
            if identity is not None:
                found[int(suffix or 0)] = identity
    return found


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _backwards(fd: int) -> Iterator[tuple[int, bytes]]:
    """(offset, record) of the finished records of a file, last first."""
    end = os.fstat(fd).st_size
    pending = b""  # the beginning of the block after this one, up to its first newline
    finished = False  # what follows the last newline is no record yet
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        data = os.pread(fd, end - start, start) + pending
        pending, *records = data.split(b"\n")
        offset = start + len(data)
        for record in reversed(records):
            offset -= len(record)
            if finished:
                yield offset, record
            finished = True
            offset -= 1  # the newline before it
        end = start
    if finished:
        yield 0, pending


def parse(record: bytes) -> LogLine | None:
    """The record without its newline; None if it is not one (a torn write, another format)."""
    parts = record.split(b" ", 3)
    if len(parts) != 4:
        return None
    stamp, stream, tags, data = parts
    if stream not in (b"stdout", b"stderr") or tags[:1] not in (b"P", b"F"):
        return None
    if len(stamp) < 20 or stamp[-1:] != b"Z" or stamp[19:20] not in (b".", b"Z"):
        return None
    fraction = stamp[20:-1]
    try:
        nsec = int(fraction.ljust(9, b"0")[:9]) if fraction else 0
        seconds = _epoch_seconds(stamp[:19])
    except ValueError:
        return None
    name = "stdout" if stream == b"stdout" else "stderr"
    return LogLine(seconds * 1_000_000_000 + nsec, name, data, tags[:1] == b"P")


@lru_cache(maxsize=256)
def _epoch_seconds(stamp: bytes) -> int:
    """Seconds since the epoch of `2016-10-06T00:17:09`, UTC. Lines of one second share the work.

    Days by Howard Hinnant's days_from_civil: no module of the standard library needed.

    Raises:
        ValueError: not such a text.
    """
    if stamp[4:5] + stamp[7:8] + stamp[10:11] + stamp[13:14] + stamp[16:17] != b"--T::":
        raise ValueError(stamp)
    year, month, day = int(stamp[:4]), int(stamp[5:7]), int(stamp[8:10])
    hour, minute, second = int(stamp[11:13]), int(stamp[14:16]), int(stamp[17:19])
    if not 1 <= month <= 12:
        raise ValueError(stamp)
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return ((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second
