"""The monitor as its clients see it, with plans made by hand: also when it is killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitors import EPHEMERAL, WAIT_SEC, Bench, Plan, fifos, op, until, wait_readable

from pycontain import _native
from pycontain._native import C, NativeExit, NativeReply
from pycontain.runtime.launcher import Launcher
from pycontain.runtime.pins import exit_from_pin, pin_pidfd, unpin_pidfd

CLD_EXITED, CLD_KILLED = 1, 2
ENOENT, EBUSY, EEXIST = 2, 16, 17


@pytest.fixture
def bench(state_root: Path) -> Iterator[Bench]:
    made = Bench(state_root)
    yield made
    made.close()
    shutil.rmtree(state_root / "containers", ignore_errors=True)


@pytest.fixture
def silence() -> Iterator[int]:
    """A pipe that never gives a byte."""
    read, write = os.pipe()
    yield read
    os.close(read)
    os.close(write)


def shell(script: str) -> Plan:
    return Plan("/bin/sh", "-c", script)


def exits(reply: NativeReply | NativeExit) -> NativeExit:
    assert isinstance(reply, NativeExit), reply
    return reply


def failed(reply: NativeReply | NativeExit) -> NativeReply:
    assert isinstance(reply, NativeReply), reply
    assert reply.kind == C.PYC_REP_FAILED
    return reply


def log_lines(path: Path) -> list[tuple[str, str, str]]:
    """(stream, tag, text) of a log."""
    rows = [line.split(" ", 3) for line in path.read_text().splitlines()]
    return [(row[1], row[2], row[3]) for row in rows]


def joined(path: Path, stream: str = "stdout") -> str:
    """What a stream said: pieces (P) joined, whole lines (F) ended."""
    rows = [(tag, text) for name, tag, text in log_lines(path) if name == stream]
    return "".join(text + ("\n" if tag == "F" else "") for tag, text in rows)


def size_of(path: Path) -> int:
    """-1 while it is missing, which it is for a moment when a log is rotated."""
    return path.stat().st_size if path.exists() else -1


# ---- a life without accidents --------------------------------------------------------------


def test_exit_code_is_told(bench: Bench) -> None:
    """EXIT carries the code of a process that left by itself, and its times."""
    end = exits(bench.run(shell("exit 42")))
    assert (end.code, end.status, end.flags) == (CLD_EXITED, 42, 0)
    assert end.ended_usec >= end.started_usec > 0
    assert end.maxrss_bytes > 0


def test_signal_is_told(bench: Bench) -> None:
    """EXIT carries the signal of a process that was killed after exec."""
    end = exits(bench.run(shell("kill -TERM $$")))
    assert (end.code, end.status) == (CLD_KILLED, 15)


def test_spawned_brings_a_pidfd(bench: Bench) -> None:
    """SPAWNED comes once the command runs, with a pidfd that is the container's."""
    with contextlib.closing(bench.spawn(Plan("/bin/sleep", "1000"))) as link:
        reply = link.read_reply(WAIT_SEC)
        assert isinstance(reply, NativeReply)
        assert reply.kind == C.PYC_REP_SPAWNED
        assert Path(f"/proc/{reply.pid}/comm").read_text() == "sleep\n"
        pidfd = link.take_pidfd()
    wait_readable(pidfd)  # the link was its lifeline
    os.close(pidfd)


def test_failed_op_is_named(bench: Bench) -> None:
    """FAILED names the op that the kernel refused; nothing stays alive."""
    reply = failed(bench.run(Plan("/no/such/program")))
    assert (reply.stage, reply.opcode, reply.err) == (C.PYC_STAGE_OP, C.PYC_OP_EXEC, ENOENT)
    assert bench.launcher.info().num[0] == 0


def test_silent_spawn_still_tells_a_failed_op(bench: Bench) -> None:
    """With QUIET there is no SPAWNED, but FAILED comes all the same."""
    reply = failed(bench.run(Plan("/no/such/program"), flags=EPHEMERAL | C.PYC_R_QUIET))
    assert reply.stage == C.PYC_STAGE_OP
    assert isinstance(bench.run(shell("exit 0"), flags=EPHEMERAL | C.PYC_R_QUIET), NativeExit)


def test_kill_before_exec_is_no_exit(bench: Bench) -> None:
    """A silent child killed before exec is FAILED(DIED), not the end of a command."""
    flags = EPHEMERAL | C.PYC_R_QUIET
    missing_byte, hold = os.pipe()
    plan = shell("exit 0")
    plan.fds.append(missing_byte)
    # WRITE_FD into a full pipe: the child stands still in our code until it is killed.
    os.set_blocking(hold, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(hold, b"x" * 4096)
    os.set_blocking(hold, True)
    plan.fds.append(hold)
    plan.first(op(C.PYC_OP_WRITE_FD, (plan.text("y"),), (2,)))
    reply = failed(bench.run(plan, flags=flags, timeout_usec=50_000))
    assert (reply.stage, reply.err) == (C.PYC_STAGE_DIED, 9)


def test_id_is_unique_among_the_living(bench: Bench) -> None:
    """A second container of the same id is refused while the first lives."""
    with contextlib.closing(bench.spawn(Plan("/bin/sleep", "1000"))) as link:
        link.read_reply(WAIT_SEC)
        reply = failed(bench.run(shell("exit 0")))
        assert (reply.stage, reply.err) == (C.PYC_STAGE_REQUEST, EEXIST)


def test_second_client_is_told_the_end(bench: Bench) -> None:
    """WAIT from another connection gets the same EXIT; for an unknown id it is NotFound."""
    with contextlib.closing(bench.spawn(Plan("/bin/sleep", "1000"))) as owner:
        owner.read_reply(WAIT_SEC)
        with contextlib.closing(bench.launcher.watch("box")) as other:
            bench.launcher.set_deadline("box", 1)
            assert exits(owner.read_reply(WAIT_SEC)) == exits(other.read_reply(WAIT_SEC))
    with contextlib.closing(bench.launcher.watch("box")) as link, pytest.raises(LookupError):
        link.read_reply(WAIT_SEC)


def test_timeout_kills(bench: Bench) -> None:
    """A container is killed at its deadline, and EXIT says why."""
    end = exits(bench.run(Plan("/bin/sleep", "1000"), timeout_usec=20_000))
    assert (end.status, end.flags) == (9, C.PYC_X_TIMED_OUT)


def test_owner_gone_kills(bench: Bench) -> None:
    """With LIFELINE the end of the connection is the container's, and EXIT says why."""
    flags = C.PYC_R_LIFELINE
    with contextlib.closing(bench.spawn(Plan("/bin/sleep", "1000"), flags=flags)) as owner:
        owner.read_reply(WAIT_SEC)
        other = bench.launcher.watch("box")
        assert bench.launcher.info().num[0] == 1  # the WAIT has been read: same queue order
    with contextlib.closing(other):
        end = exits(other.read_reply(WAIT_SEC))
    assert (end.status, end.flags) == (9, C.PYC_X_OWNER_GONE)


def test_exit_ops_collect_and_remove(bench: Bench, tmp_path: Path) -> None:
    """READ texts come with EXIT in order, WRITE is done, RMDIR is retried while busy."""
    figures, asked, group = tmp_path / "figures", tmp_path / "asked", tmp_path / "group"
    figures.write_text("usage 7")
    asked.write_text("")
    group.mkdir()
    (group / "busy").touch()
    ops = [
        (C.PYC_EXIT_READ, bytes(figures), b"cpu.stat"),
        (C.PYC_EXIT_READ, bytes(tmp_path / "missing"), b"none"),
        (C.PYC_EXIT_WRITE, bytes(asked), b"1"),
        (C.PYC_EXIT_RMDIR, bytes(group), b""),
    ]
    end = exits(bench.run(shell("exit 0"), exit_ops=ops))
    assert end.text == b"=cpu.stat\nusage 7\n=none\n"
    assert asked.read_text() == "1"
    (group / "busy").unlink()
    until(lambda: bench.launcher.shutdown())


def test_records_of_a_life(bench: Bench, silence: int) -> None:
    """`live` is there while it runs and `exit` from its end on, never both or neither."""
    link = bench.spawn(shell("read x; exit 5").stdio(silence, 0), flags=0)
    with contextlib.closing(link):
        spawned = link.read_reply(WAIT_SEC)
        assert isinstance(spawned, NativeReply)
        live = _native.decode_live((bench.state_dir("box") / "live").read_bytes())
        assert (live.pid, live.id, live.status) == (spawned.pid, "box", C.PYC_ST_RUNNING)
        assert not (bench.state_dir("box") / "exit").exists()
        os.kill(spawned.pid, 15)
        end = exits(link.read_reply(WAIT_SEC))
    assert _native.decode_exit((bench.state_dir("box") / "exit").read_bytes()) == end
    until(lambda: not (bench.state_dir("box") / "live").exists())


def test_parked_container_waits_for_start(bench: Bench) -> None:
    """PARKED at its gate, it runs only after START, even if the worker is killed in between."""
    plan = shell("exit 9").then(op(C.PYC_OP_GATE, nums=(C.PYC_GATE_START,)))
    with contextlib.closing(bench.spawn(plan, flags=C.PYC_R_PARK)) as link:
        reply = link.read_reply(WAIT_SEC)
        assert isinstance(reply, NativeReply)
        assert reply.kind == C.PYC_REP_PARKED
        bench.kill(bench.worker())
        bench.worker()
    with contextlib.closing(bench.launcher.start("box")) as link:
        reply = link.read_reply(WAIT_SEC)
        assert isinstance(reply, NativeReply)
        assert reply.kind == C.PYC_REP_SPAWNED
        assert exits(link.read_reply(WAIT_SEC)).status == 9


def test_id_maps_are_written(bench: Bench, tmp_path: Path) -> None:
    """The child of a new user namespace goes on once its maps are there."""
    plan = shell("exec cat /proc/self/uid_map")
    plan.ops = [op(C.PYC_OP_GATE, nums=(C.PYC_GATE_MAPPED,))]  # no SETNS: not from in there
    plan.header = {"clone_flags": 0x10000000, "uid_map": plan.text("0 0 1"),
                   "gid_map": plan.text("0 0 1")}  # fmt: skip
    reply = failed(bench.run(plan))  # /bin/sh does not exist in the empty root
    assert (reply.stage, reply.opcode, reply.err) == (C.PYC_STAGE_OP, C.PYC_OP_EXEC, ENOENT)
    plan = shell("exit 0")
    plan.ops = [op(C.PYC_OP_GATE, nums=(C.PYC_GATE_MAPPED,))]
    plan.header = {"clone_flags": 0x10000000, "uid_map": plan.text("nonsense"),
                   "gid_map": plan.text("0 0 1")}  # fmt: skip
    assert failed(bench.run(plan)).stage == C.PYC_STAGE_MAP


def test_child_sees_no_host_file(bench: Bench) -> None:
    """The monitor lives in a mount namespace with nothing in it but /proc and /sys."""
    points = [
        line.split()[4]
        for line in Path(f"/proc/{bench.worker()}/mountinfo").read_text().splitlines()
    ]
    assert sorted(points) == ["/", "/proc", "/sys"]


# ---- starting, leaving -----------------------------------------------------------------------


def test_racing_starts_make_one_monitor(state_root: Path) -> None:
    """Eight clients that start it at once talk to the same one."""
    launchers = [Launcher(str(state_root)) for _ in range(8)]
    barrier, pids = threading.Barrier(8), []

    def connect(launcher: Launcher) -> None:
        barrier.wait()
        pids.append(launcher.info().pid)

    threads = [threading.Thread(target=connect, args=(each,)) for each in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for launcher in launchers:
        launcher.close()
    assert len(pids) == 8
    assert len(set(pids)) == 1


@pytest.mark.parametrize(
    "host",
    [
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "import os, threading\n"
        "def reap():\n"
        "    while True:\n"
        "        try: os.waitpid(-1, 0)\n"
        "        except ChildProcessError: pass\n"
        "threading.Thread(target=reap, daemon=True).start()",
        "import os; os.umask(0); [os.open('/', os.O_RDONLY) for _ in range(50)]",
    ],
    ids=["sigchld-ignored", "reaper-thread", "descriptors"],
)
def test_any_host_program_starts_it(bench: Bench, host: str) -> None:
    """A monitor starts from programs that reap every child, or have much open; it inherits none."""
    script = f"""{host}
import sys
from pycontain.runtime.launcher import Launcher
launcher = Launcher(sys.argv[1])
print(launcher.info().pid)
launcher.close()"""
    command = [sys.executable, "-c", script, str(bench.root)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_SEC)
    assert int(said.stdout) == bench.worker()
    assert exits(bench.run(shell("exit 3"))).status == 3
    assert len(os.listdir(f"/proc/{bench.keeper()}/fd")) < 16
    status = Path(f"/proc/{bench.worker()}/status").read_text()
    assert "SigIgn:\t0000000000000000" in status
    assert "Umask:\t0077" in status


def test_idle_monitor_leaves_nothing(state_root: Path) -> None:
    """Without containers and clients it leaves, and takes its socket along."""
    launcher = Launcher(str(state_root), idle_sec=0)
    pidfd = os.pidfd_open(launcher.info().pid)
    launcher.close()
    wait_readable(pidfd)
    os.close(pidfd)
    assert not (state_root / "monitor.sock").exists()
    again = Launcher(str(state_root), idle_sec=0)
    assert again.info().num[0] == 0
    again.close()


def test_shutdown_spares_the_living(bench: Bench) -> None:
    """SHUTDOWN is refused while a container lives, and done when none does."""
    with contextlib.closing(bench.spawn(Plan("/bin/sleep", "1000"))) as link:
        link.read_reply(WAIT_SEC)
        assert not bench.launcher.shutdown()
    until(bench.launcher.shutdown)


# ---- hostile or broken clients ----------------------------------------------------------------


def test_random_bytes_do_not_harm(bench: Bench) -> None:
    """Malformed requests and blobs get FAILED or a closed connection; the worker lives on."""
    worker = bench.worker()
    random_ = random.Random(7)
    good = shell("exit 0")
    blob = bytearray(_native.encode_record(flags=EPHEMERAL, id="fuzz") + good.encode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(bench.root / "monitor.sock"))
        client.settimeout(WAIT_SEC)
        for round_ in range(400):
            fds: list[int] = []
            request = random_.randbytes(random_.choice((1, 8, 151, 152, 153, 4096)))
            if round_ % 4 == 1:
                kind = random_.choice((2, 3, 4, 5, 8, 99))
                request = _native.encode_request(kind, b"nobody", random_.getrandbits(64))
            elif round_ % 4 == 2:
                broken = bytearray(blob)
                for _ in range(random_.randint(1, 4)):
                    broken[random_.randrange(len(broken))] = random_.getrandbits(8)
                broken = broken[: random_.choice((len(broken), random_.randrange(len(broken))))]
                request = _native.encode_request(C.PYC_REQ_SPAWN)
                fds = [_native.memfd("fuzz", bytes(broken)), os.dup(good.fds[0])]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            client.sendmsg([request], rights if fds else [])
            for fd in fds:
                os.close(fd)
            kind = _native.kind_of(client.recv(65536))
            if kind == C.PYC_REP_SPAWNED:  # what was changed did not matter
                kind = _native.kind_of(client.recv(65536))
            assert kind in (C.PYC_REP_FAILED, C.PYC_REP_EXIT)
    os.close(good.fds[0])
    assert bench.worker() == worker


def test_deaf_client_does_not_block_others(bench: Bench) -> None:
    """A client that never reads its replies loses its connection, not the monitor's time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.settimeout(WAIT_SEC)
        bench.worker()
        deaf.connect(str(bench.root / "monitor.sock"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                deaf.send(_native.encode_request(C.PYC_REQ_INFO), socket.MSG_NOSIGNAL)
    assert exits(bench.run(shell("exit 1"))).status == 1


def test_five_hundred_spawns_leak_no_fd(bench: Bench) -> None:
    """Keeper and worker have the same descriptors after 500 runs, of all sorts, as before."""
    assert exits(bench.run(shell("exit 0"))).status == 0
    pids = (bench.worker(), bench.keeper())
    until(lambda: bench.launcher.info().num == (0, 1))
    before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
    for i in range(500):
        flags = EPHEMERAL if i % 5 else 0
        plan = Plan("/bin/true" if i % 3 else "/no/such/program")
        reply = bench.run(plan, flags=flags)
        assert isinstance(reply, NativeExit) == bool(i % 3)
    until(lambda: bench.launcher.info().num == (0, 1))
    assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids] == before


def test_two_hundred_containers_fit_in_little_memory(bench: Bench) -> None:
    """The resident memory of keeper and worker with 200 containers is at most 1.5 MB."""
    ops = [
        (C.PYC_EXIT_READ, b"/sys/fs/cgroup/some/where/%d" % i, b"label%d" % i) for i in range(24)
    ]
    links = []
    for i in range(200):
        links.append(bench.spawn(Plan("/bin/sleep", "1000"), id=f"box{i}", exit_ops=ops))
        links[-1].read_reply(WAIT_SEC)
    total = 0
    for pid in (bench.worker(), bench.keeper()):
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))
    for link in links:
        link.close()
    assert total <= 1536
    until(lambda: bench.launcher.info().num[0] == 0)


# ---- accidents --------------------------------------------------------------------------------


@pytest.mark.parametrize("rotated", [False, True])
def test_killed_worker_loses_no_line(bench: Bench, tmp_path: Path, rotated: bool) -> None:
    """100000 numbered lines are in the log exactly once after 20 kills of the worker."""
    log, state_dir = tmp_path / "log", bench.state_dir("box")
    limits = {"log_max_bytes": 700_000, "log_max_files": 1000} if rotated else {}
    script = """i=0
        while read step; do
            n=$((i+5000)); while [ $i -lt $n ]; do echo $i; i=$((i+1)); done
        done
        echo end >&2; exit 3"""
    steps, go = os.pipe()
    with fifos(state_dir) as (out, err):
        plan = shell(script).stdio(steps, 0).stdio(out, 1).stdio(err, 2)
        link = bench.spawn(plan, flags=C.PYC_R_LOG, log_path=str(log), **limits)
        os.close(steps)
        link.read_reply(WAIT_SEC)
        link.close()
    for _ in range(20):
        worker = bench.worker()
        size = size_of(log)
        os.write(go, b"go\n")
        until(lambda size=size: size_of(log) != size)  # it is in the midst of these lines
        bench.kill(worker)
    os.close(go)
    end = bench.wait("box")
    assert (end.code, end.status, end.flags) == (CLD_EXITED, 3, 0)
    files = sorted(tmp_path.glob("log.*"), key=lambda path: -int(path.suffix[1:]))
    assert bool(files) == rotated
    said = "".join(joined(path) for path in [*files, log])
    assert said == "".join(f"{i}\n" for i in range(100000))
    assert joined(log, "stderr") == "end\n"


def test_full_disk_loses_no_line(bench: Bench, tmp_path: Path) -> None:
    """While the log's disk is full the container waits; once there is room all lines arrive."""
    disk, state_dir = tmp_path / "disk", bench.state_dir("box")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(disk)], check=True)
    try:
        with fifos(state_dir) as (out, _err):
            plan = shell("seq 1 60000; exit 5").stdio(out, 1)
            link = bench.spawn(plan, flags=C.PYC_R_LOG, log_path=str(disk / "log"))
        with contextlib.closing(link):
            link.read_reply(WAIT_SEC)
            sizes = [0]

            def stands_still() -> bool:
                sizes.append(size_of(state_dir / "out.spool"))
                return sizes[-1] > 8 and sizes[-20:] == sizes[-1:] * 20

            until(stands_still)
            grow = ["mount", "-o", "remount,size=8m", str(disk)]
            subprocess.run(grow, check=True)
            assert exits(link.read_reply(WAIT_SEC)).status == 5
        assert joined(disk / "log") == "".join(f"{i}\n" for i in range(1, 60001))
    finally:
        until(bench.launcher.shutdown)
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_worker_loses_no_exit(bench: Bench) -> None:
    """Containers that end around the death of the worker are told with code and usage."""
    for round_ in range(5):
        hold, go = os.pipe()
        for i in range(4):
            plan = shell(f"read x; exit {i + 1}").stdio(hold, 0)
            link = bench.spawn(plan, id=f"box{i}", flags=0)
            link.read_reply(WAIT_SEC)
            link.close()
        os.close(hold)
        worker = bench.worker()
        bench.launcher.close()
        if round_ % 2:
            os.kill(worker, 9)
            os.close(go)
        else:
            os.close(go)
            os.kill(worker, 9)
        ends = [bench.wait(f"box{i}") for i in range(4)]
        assert [(e.code, e.status, e.flags) for e in ends] == [
            (CLD_EXITED, i + 1, 0) for i in range(4)
        ]
        assert all(e.maxrss_bytes > 0 for e in ends)


def test_lifeline_is_taken_up_again(bench: Bench) -> None:
    """After the worker's death WAIT makes the owner's new connection the lifeline."""
    link = bench.spawn(Plan("/bin/sleep", "1000"), flags=C.PYC_R_LIFELINE)
    with contextlib.closing(link):
        link.read_reply(WAIT_SEC)
        pidfd = link.take_pidfd()
        bench.kill(bench.worker())
    new = bench.launcher.watch("box")
    assert bench.launcher.info().num[0] == 1
    new.close()
    wait_readable(pidfd)
    os.close(pidfd)
    end = bench.wait("box")
    assert (end.status, end.flags) == (9, C.PYC_X_OWNER_GONE)


def test_killed_keeper_stops_nothing(bench: Bench, silence: int) -> None:
    """The worker goes on alone: what runs is told, what is new is started."""
    with contextlib.closing(bench.spawn(shell("read x; exit 6").stdio(silence, 0))) as link:
        link.read_reply(WAIT_SEC)
        bench.kill(bench.keeper())
        assert exits(bench.run(shell("exit 2"), id="other")).status == 2
        bench.launcher.set_deadline("box", 1)
        assert exits(link.read_reply(WAIT_SEC)).status == 9


@pytest.mark.needs("kernel:6.15")  # an exit code without being the parent: PIDFD_INFO_EXIT
def test_killed_pair_is_replaced(bench: Bench) -> None:
    """A new monitor adopts what runs from `live`, with its deadline, and learns how it ends."""
    hold, go = os.pipe()
    link = bench.spawn(shell("read x; exit 7").stdio(hold, 0), flags=0)
    os.close(hold)
    link.read_reply(WAIT_SEC)
    link.close()
    keeper, worker = bench.keeper(), bench.worker()
    bench.launcher.close()
    bench.kill(keeper, worker)
    with contextlib.closing(bench.launcher.watch("box")) as link:
        assert bench.launcher.info().num[0] == 1
        os.close(go)
        end = exits(link.read_reply(WAIT_SEC))
    assert (end.code, end.status, end.flags) == (CLD_EXITED, 7, 0)


@pytest.mark.needs("kernel:6.15")
def test_pinned_exit_outlives_everybody(bench: Bench, subreaper: None) -> None:
    """A container that ends while no monitor lives: the pinned pidfd knows how."""
    hold, go = os.pipe()
    link = bench.spawn(shell("read x; exit 8").stdio(hold, 0), flags=0)
    os.close(hold)
    link.read_reply(WAIT_SEC)
    pidfd, pin = link.take_pidfd(), str(bench.state_dir("box") / "pidfd")
    link.close()
    assert pin_pidfd(pidfd, pin)
    keeper, worker = bench.keeper(), bench.worker()
    bench.launcher.close()
    bench.kill(keeper, worker)
    os.close(go)
    wait_readable(pidfd)
    os.close(pidfd)
    until(lambda: _reaped() or exit_from_pin(pin) is not None)
    assert exit_from_pin(pin) == 8 << 8
    end = bench.wait("box")
    unpin_pidfd(pin)
    assert (end.code, end.status, end.flags) == (CLD_EXITED, 8, 0)
    assert not os.path.exists(pin)


def test_unknown_end_is_said(bench: Bench, subreaper: None) -> None:
    """Without a pin such an end is recorded as unknown, not invented."""
    hold, go = os.pipe()
    link = bench.spawn(shell("read x; exit 8").stdio(hold, 0), flags=0)
    os.close(hold)
    link.read_reply(WAIT_SEC)
    pidfd = link.take_pidfd()
    link.close()
    keeper, worker = bench.keeper(), bench.worker()
    bench.launcher.close()
    bench.kill(keeper, worker)
    os.close(go)
    wait_readable(pidfd)
    until(lambda: _reaped() or not _exists(pidfd))
    os.close(pidfd)
    assert bench.wait("box").flags == C.PYC_X_UNKNOWN


@pytest.fixture
def subreaper(bench: Bench) -> Iterator[None]:
    """Orphans become ours, so that the test and not the machine's init decides when to reap."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    yield
    until(bench.launcher.shutdown)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    prctl(36, 0, 0, 0, 0)


def _reaped() -> bool:
    """Reap what has ended; always False, for use in a condition."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return False


def _exists(pidfd: int) -> bool:
    import signal

    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True
