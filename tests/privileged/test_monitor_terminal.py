"""Terminals at the monitor: what is typed and said arrives whole, also around accidents."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitors import WAIT_SEC, Bench, Plan, op, until

from pycontain._native import C, NativeExit, NativeReply
from pycontain.runtime.launcher import Link


@pytest.fixture
def bench(state_root: Path) -> Iterator[Bench]:
    made = Bench(state_root)
    yield made
    made.close()
    shutil.rmtree(state_root / "containers", ignore_errors=True)


def parked(bench: Bench, script: str, flags: int = 0, **record: object) -> Link:
    """A shell on a terminal of 24 rows, 80 columns, that stands at its gate."""
    plan = Plan("/bin/sh", "-c", script)
    plan.fds.append(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    plan.then(
        op(C.PYC_OP_SETSID),
        op(C.PYC_OP_TERMINAL, slots=(1, -1), nums=(24 << 32 | 80, 0)),
        op(C.PYC_OP_GATE, nums=(C.PYC_GATE_START,)),
    )
    link = bench.spawn(plan, flags=C.PYC_R_TERMINAL | C.PYC_R_PARK | flags, **record)  # type: ignore[arg-type]
    reply = link.read_reply(WAIT_SEC)
    assert isinstance(reply, NativeReply)
    assert reply.kind == C.PYC_REP_PARKED, reply
    return link


@contextlib.contextmanager
def session(bench: Bench, script: str) -> Iterator[tuple[Link, socket.socket]]:
    """Yield the link of a running shell and the socket that was attached before it ran."""
    with (
        contextlib.closing(parked(bench, script)),
        attached(bench) as terminal,
        contextlib.closing(bench.launcher.start("box")) as link,
    ):
        assert isinstance(link.read_reply(WAIT_SEC), NativeReply)
        yield link, terminal


def attached(bench: Bench) -> socket.socket:
    terminal = bench.launcher.attach("box")
    terminal.settimeout(WAIT_SEC)
    return terminal


def read_until(terminal: socket.socket, end: bytes) -> bytes:
    said = b""
    while end not in said:
        piece = terminal.recv(65536)
        assert piece, said[-200:]
        said += piece
    return said


def read_all(terminal: socket.socket) -> bytes:
    said = b""
    while piece := terminal.recv(4096):
        said += piece
    return said


def wait_at_rest(pid: int) -> None:
    """Return once the process has not run for a while."""
    stat, figures = Path(f"/proc/{pid}/schedstat"), [""]

    def at_rest() -> bool:
        figures.append(stat.read_text())
        return len(figures) > 20 and len(set(figures[-20:])) == 1

    until(at_rest)


def exits(link: Link) -> NativeExit:
    reply = link.read_reply(WAIT_SEC)
    assert isinstance(reply, NativeExit), reply
    return reply


def test_paste_arrives_whole(bench: Bench) -> None:
    """64 KiB sent at once reach a program that reads them a little at a time."""
    paste = bytes(range(256)) * 256
    script = """stty raw -echo; printf ready; exec python3 -c '
import os, zlib
taken = b""
while len(taken) < 65536: taken += os.read(0, 100)
print("crc", zlib.crc32(taken))'"""
    with session(bench, script) as (link, terminal):
        read_until(terminal, b"ready")
        terminal.sendall(paste)
        said = read_until(terminal, b"\n")
        assert said.split() == [b"crc", str(zlib.crc32(paste)).encode()]
        assert exits(link).status == 0


def test_last_output_arrives_whole(bench: Bench) -> None:
    """Everything that was said before the end is read after EXIT, then end of file."""
    with session(bench, "stty -opost; seq 1 60000; exit 4") as (link, terminal):
        said = read_all(terminal)
        assert said == b"".join(b"%d\n" % i for i in range(1, 60001))
        assert exits(link).status == 4


def test_output_waits_for_who_is_attached(bench: Bench) -> None:
    """An attached program that does not read stops the output; its going away lets it go on.

    Meanwhile the monitor waits, it does not turn.
    """
    with session(bench, "seq 1 200000; exit 4") as (link, terminal):
        wait_at_rest(bench.worker())
        assert bench.launcher.info().num[0] == 1
        terminal.close()
        assert exits(link).status == 4


def test_ended_terminal_with_a_deaf_client_costs_no_cpu(bench: Bench) -> None:
    """The last output waits for a client that does not read, after EXIT and a hang-up."""
    script = "head -c 12000 /dev/zero | tr '\\0' x"
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is
    with ours, contextlib.closing(parked(bench, script)):
        with theirs:
            bench.launcher.request(C.PYC_REQ_ATTACH, "box", fds=(theirs.fileno(),))
        with contextlib.closing(bench.launcher.start("box")) as link:
            link.read_reply(WAIT_SEC)
            assert exits(link).status == 0
        wait_at_rest(bench.worker())
        assert read_all(ours) == b"x" * 12000


def test_shutdown_does_not_wait_for_a_deaf_client(bench: Bench) -> None:
    """Output that nobody fetches keeps no monitor from leaving."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with ours, contextlib.closing(parked(bench, "head -c 12000 /dev/zero")):
        with theirs:
            bench.launcher.request(C.PYC_REQ_ATTACH, "box", fds=(theirs.fileno(),))
        with contextlib.closing(bench.launcher.start("box")) as link:
            link.read_reply(WAIT_SEC)
            assert exits(link).status == 0
        assert bench.launcher.shutdown()


def test_two_attached_see_the_same(bench: Bench) -> None:
    """Output goes to everybody who is attached; closing one detaches only that one."""
    with session(bench, "stty -echo; printf one; read x; printf two") as (link, first):
        read_until(first, b"one")
        with attached(bench) as second:
            first.send(b"\n")
            assert read_all(first) == read_all(second) == b"two"
            assert exits(link).status == 0


def test_resize_is_seen(bench: Bench) -> None:
    """The terminal has the size of the plan, then the one of RESIZE."""
    with session(bench, "stty -echo; stty size; read x; stty size") as (link, terminal):
        assert read_until(terminal, b"\n") == b"24 80\r\n"
        bench.launcher.resize("box", 50, 132)
        terminal.send(b"\n")
        assert read_until(terminal, b"\n") == b"50 132\r\n"
        assert exits(link).status == 0


def test_unattached_output_is_logged_and_stops_nothing(bench: Bench, tmp_path: Path) -> None:
    """With nobody attached a terminal is read all the same, and its log is whole."""
    log = tmp_path / "log"
    script = "stty -opost; seq 1 60000; exit 2"
    with (
        contextlib.closing(parked(bench, script, C.PYC_R_LOG, log_path=str(log))),
        contextlib.closing(bench.launcher.start("box")) as link,
    ):
        link.read_reply(WAIT_SEC)
        assert exits(link).status == 2
    rows = [line.split(" ", 3) for line in log.read_text().splitlines()]
    said = "".join(row[3] + ("\n" if row[2] == "F" else "") for row in rows)
    assert said == "".join(f"{i}\n" for i in range(1, 60001))


def test_killed_worker_hangs_up_nobody(bench: Bench) -> None:
    """The terminal outlives the worker: the attached see end of file, and may attach again."""
    with session(bench, "stty -echo; printf one; read x; printf two") as (_, terminal):
        read_until(terminal, b"one")
        bench.kill(bench.worker())
        assert read_all(terminal) == b""
        with contextlib.closing(bench.launcher.watch("box")) as link, attached(bench) as again:
            again.send(b"\n")
            assert read_all(again) == b"two"
            end = exits(link)
            assert (end.status, end.flags) == (0, 0)
