"""Faults at every gate: a system call of the child is refused, the caller or the worker is killed.

strace injects them (strace(1), "Tampering"): a call counts for each traced process by itself, and
a process that is killed at a call has not made it. The leak guard looks at what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitors import until

from pycontain import Engine
from pycontain.errors import (
    ChildSetupError,
    CommandNotExecutable,
    InternalError,
    KernelError,
    WrongState,
)
from pycontain.isolation import cgroups, cgroups_systemd

pytestmark = [pytest.mark.needs("program:strace"), pytest.mark.host]

IMAGE = "pycontain/hello"
WAIT_SEC = 20.0  # a hang, not a measure


@contextlib.contextmanager
def tampered(pid: int, call: str, what: str, *, follow: bool) -> Iterator[None]:
    """Within, strace does `what` to the calls of a process and, if `follow`, its children."""
    command = ["strace", *(["-f"] if follow else []), "-o", "/dev/null", "-p", str(pid)]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:{what}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        try:
            first = strace.stderr.readline()
            assert b"attached" in first, first
            yield
        finally:
            strace.terminate()
            strace.stderr.read()


def left_of(engine: Engine) -> list[str]:
    """State directories, data directories and cgroups of containers."""
    host = engine.host
    groups = cgroups.children(host.layout(), host.cgroup_parent(start=False))
    groups = [name for name in groups if name != cgroups_systemd.MONITOR]  # its leaf in a scope
    ours = f".spare-{os.getpid()}-"  # a layer ready for the next container of this very process
    data = [name for name in host.data_ids() if not name.startswith(ours)]
    return [*host.states.ids(), *data, *groups]


def settled(engine: Engine) -> bool:
    """Whether the monitor has no living container."""
    return engine.host.launcher.info().num[0] == 0


# ---- a call of the child is refused -------------------------------------------------------------


REFUSALS = [
    ("mount", 1, "mounts"),
    ("fsopen", 1, "mounts[0] /proc"),
    ("fsconfig", 1, "mounts[0] /proc"),
    ("fsmount", 1, "mounts[0] /proc"),
    ("move_mount", 1, "rootfs"),
    ("open_tree", 1, "readonly_paths "),
    ("mount_setattr", 1, ("mounts[", "readonly_paths ")),  # v1: the cgroup mounts come before
    ("mknodat", 1, "devices[0]"),
    ("symlinkat", 1, "mounts[1] /dev"),
    ("mkdirat", 1, "mounts[1] /dev"),
    ("pivot_root", 1, "rootfs"),
    ("umount2", 1, "rootfs"),
    ("fchdir", 1, "rootfs"),
    ("sethostname", 1, "hostname"),
    ("socket", 1, "namespaces network"),
    ("keyctl", 1, "keyring"),
    ("setsid", 1, "process"),
    ("chdir", 1, "rootfs"),
    ("chdir", 2, "cwd"),
    ("getcwd", 1, "cwd"),
    ("dup3", 1, "stdio"),
    ("prlimit64", 1, "ulimits RLIMIT_NOFILE"),
    ("setgroups", 1, "user.additional_gids"),
    ("setresgid", 1, "user"),
    ("setresuid", 1, "user"),
    ("capset", 1, "capabilities"),
    ("seccomp", 1, "seccomp"),
]


@pytest.mark.parametrize(("call", "nth", "field"), REFUSALS)
def test_refused_call_names_the_field(
    engine: Engine, call: str, nth: int, field: str | tuple[str, ...]
) -> None:
    """Whatever the kernel refuses in the child, the error names what was asked for; nothing stays.

    `quiet`, as `run` starts it, hears of it in place of the exit.
    """
    worker = engine.host.launcher.info().pid
    with (
        tampered(worker, call, f"error=EPERM:when={nth}", follow=True),
        pytest.raises(ChildSetupError) as caught,
    ):
        engine.run(IMAGE, ulimits=["nofile=64:64"])
    assert caught.value.field is not None
    assert caught.value.field.startswith(field)
    assert caught.value.errno == 1
    assert left_of(engine) == []
    assert engine.run(IMAGE, ["--exit", "7"]).exit_code == 7


def test_refused_exec_is_about_the_command(engine: Engine) -> None:
    """The last op: the command is named, and it is no setup error."""
    worker = engine.host.launcher.info().pid
    with (
        tampered(worker, "execve", "error=EPERM:when=1", follow=True),
        pytest.raises(CommandNotExecutable, match="/hello"),
    ):
        engine.run(IMAGE)
    assert left_of(engine) == []


@pytest.mark.parametrize("nth", [1, 2, 4, 6, 40])
def test_refused_prctl_names_the_field(engine: Engine, nth: int) -> None:
    """Bounding set, KEEPCAPS and no_new_privs; what comes before the plan can't fail a start."""
    worker = engine.host.launcher.info().pid
    with tampered(worker, "prctl", f"error=EPERM:when={nth}", follow=True):
        try:
            engine.run(IMAGE)
        except ChildSetupError as error:
            assert error.field in ("capabilities", "user", "no_new_privileges")
        else:
            assert nth in (1, 2, 40)  # DUMPABLE and NAME; more than there are
    assert left_of(engine) == []


@pytest.mark.parametrize("nth", [1, 2, 5, 20])
def test_refused_openat2_is_a_clean_error(engine: Engine, nth: int) -> None:
    """The worker opens the state directory with it, the child every path in the image."""
    worker = engine.host.launcher.info().pid
    with (
        tampered(worker, "openat2", f"error=EPERM:when={nth}", follow=True),
        pytest.raises(KernelError),
    ):
        engine.run(IMAGE)
    assert left_of(engine) == []


def test_refused_close_range_is_not_blamed_on_the_first_op(engine: Engine) -> None:
    """It happens before the plan: no field of the spec is at fault."""
    worker = engine.host.launcher.info().pid
    with (
        tampered(worker, "close_range", "error=EPERM:when=1", follow=True),
        pytest.raises(KernelError, match="close_range") as caught,
    ):
        engine.run(IMAGE)
    assert caught.value.field is None
    assert left_of(engine) == []


@pytest.mark.parametrize(
    ("error", "hint"), [("EAGAIN", "pids limit"), ("ENOSPC", "max_.*_namespaces")]
)
def test_refused_clone_says_which_limit(engine: Engine, error: str, hint: str) -> None:
    """No process is made: the namespaces are named, and the limit that may be reached."""
    worker = engine.host.launcher.info().pid
    with (
        tampered(worker, "clone3", f"error={error}:when=1", follow=False),
        pytest.raises(KernelError, match=hint) as caught,
    ):
        engine.run(IMAGE)
    assert caught.value.field == "namespaces"
    assert left_of(engine) == []


# ---- the caller is killed -----------------------------------------------------------------------


CALLER = """
import os, sys
from pycontain import Engine

state_root, data_root, *command = sys.argv[1:]
with Engine(state_root=state_root, data_root=data_root) as engine:
    engine.images.resolve("pycontain/hello")
    engine.host.launcher.info()
    os.access("/gates-begin", os.F_OK)
    engine.run("pycontain/hello", command, capture_output=True)
    os.access("/gates-end", os.F_OK)
"""
BEFORE_END = ("mkdir", "mkdirat", "symlinkat", "renameat", "pipe2", "fsopen", "fsconfig", "fsmount",
              "bpf", "memfd_create", "sendmsg", "poll")  # fmt: skip
AFTER_END = ("recvmsg", "rmdir", "unlinkat")
GATES_PER_CALL = 3

_gates: Counter[str] = Counter()
_first_gate: Counter[str] = Counter()


def caller(engine: Engine, tampering: list[str], *command: str) -> int:
    """Run the embedded image from a program of its own, tampered with; return its exit code."""
    roots = [engine.state_root, engine.data_root]
    arguments = ["strace", *tampering, sys.executable, "-c", CALLER, *roots, *command]
    with subprocess.Popen(arguments, start_new_session=True) as process:
        try:
            return process.wait(WAIT_SEC)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def gates(engine: Engine, tmp_path: Path, call: str) -> list[int]:
    """The occurrences of a call that lie within the run, few and evenly spread."""
    if not _gates:
        trace = tmp_path / "trace"
        names = ",".join((*BEFORE_END, *AFTER_END, "access", "faccessat2"))
        code = caller(engine, ["-o", str(trace), "-e", f"trace={names}"], "--exit", "0")
        assert code == 0
        before, _, rest = trace.read_text().partition('"/gates-begin"')
        within, end, _ = rest.partition('"/gates-end"')
        assert end
        _first_gate.update(line.partition("(")[0] for line in before.splitlines())
        _gates.update(line.partition("(")[0] for line in within.splitlines())
    first, count = _first_gate[call] + 1, _gates[call]
    step = max(1, (count - 1) // (GATES_PER_CALL - 1))
    return sorted({*range(first, first + count, step), first + count - 1}) if count else []


def make_old(engine: Engine) -> None:
    """State directories without a state look as if nobody were making them just now."""
    for container_id in engine.host.states.ids():
        os.utime(engine.host.states.path(container_id), (0, 0))


@pytest.mark.parametrize("call", [*BEFORE_END, *AFTER_END])
def test_killed_caller_leaves_what_prune_removes(engine: Engine, tmp_path: Path, call: str) -> None:
    """kill -9 at each step of making, waiting and removing: `prune` finds all that was made."""
    # The image, the filter and the cgroups' parent are there: each run now makes the same calls.
    assert caller(engine, ["-o", "/dev/null", "-e", "trace=none"], "--exit", "0") == 0
    command = ("--sleep", "30") if call in BEFORE_END else ("--exit", "0")
    found = gates(engine, tmp_path, call)
    assert found
    if call == "poll":  # the first is while it runs or starts; how many follow is chance
        found = found[:1]
    for nth in found:
        tampering = ["-o", "/dev/null", "-e", f"trace={call}"]
        tampering += ["-e", f"inject={call}:signal=SIGKILL:when={nth}"]
        assert caller(engine, tampering, *command) == -signal.SIGKILL, nth
        until(lambda: settled(engine))
        make_old(engine)
        engine.prune()
        assert left_of(engine) == [], nth
        assert engine.run(IMAGE, ["--exit", "7"]).exit_code == 7


# ---- the worker is killed -----------------------------------------------------------------------


WORKER_GATES = [
    ("recvmsg", 1), ("mmap", 1), ("openat2", 1), ("renameat2", 1), ("socketpair", 1),
    ("clone3", 1), ("openat", 2), ("openat", 3), ("pwrite64", 1), ("pwrite64", 2), ("epoll_ctl", 1),
    ("epoll_pwait", 1), ("epoll_pwait", 2), ("sendmsg", 1), ("waitid", 1), ("renameat2", 2),
    ("waitid", 2), ("sendmsg", 2), ("unlinkat", 2), ("unlinkat", 99),
]  # fmt: skip


def run_detached(engine: Engine, call: str, nth: int) -> int | None:
    """Start a container whose monitor is killed; return its exit code, None if it never started."""
    worker = engine.host.launcher.info().pid
    container = engine.container(IMAGE, ["--exit", "7"], detach=True)
    with tampered(worker, call, f"signal=SIGKILL:when={nth}", follow=False):
        try:
            container.start()
            record = container.wait(WAIT_SEC)
        except InternalError:
            record = None
        finally:
            container.remove(force=True)
    if record is None:
        return None
    assert record.known, record
    return record.exit_code if record.signal is None else -record.signal


@pytest.mark.parametrize(("call", "nth"), WORKER_GATES)
def test_killed_worker_loses_no_exit_code(engine: Engine, call: str, nth: int) -> None:
    """The next worker knows how it ended; or the start says that it came to nothing."""
    assert run_detached(engine, call, nth) in (7, None)
    assert left_of(engine) == []


@pytest.mark.parametrize(("call", "nth"), WORKER_GATES)
def test_killed_worker_does_not_disturb_a_run(engine: Engine, call: str, nth: int) -> None:
    """`run` starts what never ran again; it never reports an end that was not the command's."""
    worker = engine.host.launcher.info().pid
    with tampered(worker, call, f"signal=SIGKILL:when={nth}", follow=False):
        result = engine.run(IMAGE, ["--exit", "7"])
    assert (result.known, result.exit_code, result.signal) == (True, 7, None)
    assert left_of(engine) == []


@pytest.mark.parametrize(
    ("call", "nth"),
    [("clone3", 1), ("openat", 1), ("epoll_pwait", 2), ("sendmsg", 1), ("waitid", 1)],
)
def test_killed_worker_never_makes_up_the_end_of_an_exec(
    engine: Engine, call: str, nth: int
) -> None:
    """Its end is told, or is an error: only its connection knew of it. The container runs on."""
    with engine.container(IMAGE, ["--sleep", "100"], detach=True) as container:
        container.start()
        worker = engine.host.launcher.info().pid
        with (
            tampered(worker, call, f"signal=SIGKILL:when={nth}", follow=False),
            contextlib.suppress(InternalError, WrongState),
        ):
            assert container.exec(["/hello", "--exit", "7"], capture_output=True).exit_code == 7
        assert container.status == "running"
    assert left_of(engine) == []
