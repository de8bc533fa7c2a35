"""Hand-made plans, and a launcher for them: no image, no cgroup, hardly a namespace."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pycontain import _native
from pycontain._native import C, NativeExit, NativeReply
from pycontain.runtime.launcher import Launcher, Link, MonitorLost

CLONE_NEWNS = 0x20000
EPHEMERAL = C.PYC_R_EPHEMERAL | C.PYC_R_LIFELINE
WAIT_SEC = 60.0  # a hang, not a measure


def op(
    code: int,
    texts: Sequence[int] = (),
    slots: Sequence[int] = (),
    nums: Sequence[int] = (),
    flags: int = 0,
) -> _native.Op:
    t, s, n = (*texts, 0, 0, 0, 0), (*slots, -1, -1, -1), (*nums, 0, 0, 0)
    return code, flags, (t[0], t[1], t[2], t[3]), (s[0], s[1], s[2]), (n[0], n[1], n[2])


class Plan:
    """argv executed in the host's mount namespace (the monitor's own is empty); slot 0 is that."""

    def __init__(self, *argv: str) -> None:
        self.argv = argv
        self.arena = bytearray(8)
        self.ops = [op(C.PYC_OP_SETNS, slots=(0,), nums=(CLONE_NEWNS,))]
        self.fds = [os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)]
        self.slots_made = 0
        self.header: dict[str, int] = {"clone_flags": 0}

    def text(self, *values: str) -> int:
        offset = len(self.arena)
        for value in values:
            self.arena += value.encode() + b"\0"
        return offset

    def first(self, *ops: _native.Op) -> Plan:
        """These run before all others."""
        self.ops[:0] = ops
        return self

    def then(self, *ops: _native.Op) -> Plan:
        """These run last before exec."""
        self.ops += ops
        return self

    def stdio(self, fd: int, *targets: int) -> Plan:
        self.fds.append(os.dup(fd))
        slot = len(self.fds) - 1
        return self.then(*(op(C.PYC_OP_STDIO, slots=(slot,), nums=(t,)) for t in targets))

    def encode(self) -> bytes:
        argv, path = self.text(*self.argv), self.text(self.argv[0])
        environment = self.text("PATH=/usr/bin:/bin")
        self.arena += bytes(-len(self.arena) % 8)
        scratch = len(self.arena)
        self.arena += bytes(8 * (len(self.argv) + 3))
        execute = op(C.PYC_OP_EXEC, (argv, environment, path, scratch), nums=(len(self.argv), 1, 1))
        return _native.encode_plan(
            [*self.ops, execute],
            bytes(self.arena),
            fd_count=len(self.fds),
            slot_count=len(self.fds) + self.slots_made,
            **self.header,
        )


class Bench:
    """A launcher on a state root, and what tests do with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.launcher = Launcher(str(root))

    def state_dir(self, id: str) -> Path:
        path = self.root / "containers" / id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def spawn(self, plan: Plan, id: str = "box", flags: int = EPHEMERAL, **record: object) -> Link:
        """Send the plan; anything not EPHEMERAL gets a state directory."""
        if not flags & C.PYC_R_EPHEMERAL:
            record["state_dir"] = str(self.state_dir(id))
        head = _native.encode_record(flags=flags, id=id, **record)  # type: ignore[arg-type]
        try:
            return self.launcher.spawn(head + plan.encode(), plan.fds)
        finally:
            for fd in plan.fds:
                os.close(fd)

    def run(self, plan: Plan, **options: object) -> NativeReply | NativeExit:
        """Return the last word on a plan: FAILED or EXIT."""
        link = self.spawn(plan, **options)  # type: ignore[arg-type]
        with contextlib.closing(link):
            reply = link.read_reply(WAIT_SEC)
            if isinstance(reply, NativeReply) and reply.kind != C.PYC_REP_FAILED:
                reply = link.read_reply(WAIT_SEC)
        return reply

    def wait(self, id: str) -> NativeExit:
        """Return how `id` ends, whatever happens to the monitor meanwhile."""
        while True:
            try:
                with contextlib.closing(self.launcher.watch(id)) as link:
                    reply = link.read_reply(WAIT_SEC)
            except MonitorLost:
                continue
            except LookupError:
                return _native.decode_exit((self.root / "containers" / id / "exit").read_bytes())
            assert isinstance(reply, NativeExit)
            return reply

    def worker(self) -> int:
        while True:
            with contextlib.suppress(MonitorLost):
                return self.launcher.info().pid

    def keeper(self) -> int:
        stat = Path(f"/proc/{self.worker()}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])

    def kill(self, *pids: int) -> None:
        """Kill monitor processes, and return when they have ended."""
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pid in pids:
            os.kill(pid, 9)
        for pidfd in pidfds:
            wait_readable(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        self.launcher.close()


def wait_readable(fd: int) -> None:
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(int(WAIT_SEC * 1000)), "nothing came"


def until(condition: object) -> None:
    """Return once `condition()` holds: for what nothing announces."""
    deadline = time.monotonic() + WAIT_SEC
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.002)


@contextlib.contextmanager
def fifos(state_dir: Path) -> Iterator[tuple[int, int]]:
    """FIFOs `out` and `err`, open both ways as the client opens them."""
    opened = []
    for name in ("out", "err"):
        os.mkfifo(state_dir / name, 0o600)
        opened.append(os.open(state_dir / name, os.O_RDWR | os.O_CLOEXEC))
    try:
        yield opened[0], opened[1]
    finally:
        for fd in opened:
            os.close(fd)
