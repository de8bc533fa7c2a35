"""Limits hold against programs that fight them, and the record says right which one was hit.

Whether a container died for lack of memory is looked at many times over, because a runtime that
samples the cgroup is right nearly always: PYCONTAIN_OOM_RUNS says how often.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import userland

from pycontain import DEVNULL, Engine, Result
from pycontain.isolation import cgroups
from pycontain.runtime.state import Status
from pycontain.usage import Usage

HELLO = "pycontain/hello"
MIB = 1 << 20
IN_VM = os.environ.get("PYCONTAIN_IN_VM") == "1"
OOM_RUNS = int(os.environ.get("PYCONTAIN_OOM_RUNS", "100" if IN_VM else "20"))
GREEDY = "echo 1000 > /proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=64M count=1"
QUOTA_USEC = 50_000  # of cpus=0.5 in each period of 100 ms
Shell = Callable[..., Result]


@pytest.fixture
def image(tmp_path: Path) -> str:
    return userland.make(tmp_path / "root")


@pytest.fixture
def sh(engine: Engine, image: str) -> Shell:
    return userland.shell(engine, image)


@pytest.fixture
def disk_path() -> Iterator[str]:
    """A directory that is on a disk: what is written to a tmpfs can't be dropped from memory."""
    with tempfile.TemporaryDirectory(prefix="pyc-test-", dir="/var/tmp") as path:
        yield path


def is_v2(controller: str) -> bool:
    """The controller is on the v2 tree; otherwise a v1 hierarchy has it."""
    root = cgroups.detect().v2_root
    return root is not None and controller in Path(root, "cgroup.controllers").read_text().split()


def only_the_greedy() -> dict[str, Any]:
    """The option that has one process killed and not the container: v1 knows no other way."""
    return {"cgroup_conf": {"memory.oom.group": "0"}} if is_v2("memory") else {}


# ---- out of memory -----------------------------------------------------------------------------


def test_out_of_memory_every_time(engine: Engine) -> None:
    """A container that exceeds its memory at once is dead and called so, every time."""
    for _ in range(OOM_RUNS):
        result = engine.run(HELLO, ["--alloc", "32M"], memory="8M", stdout=DEVNULL)
        assert (result.signal, result.oom_killed) == (9, True)


def test_out_of_memory_of_a_child_every_time(sh: Shell) -> None:
    """`oom_killed` though the first process survived and ended well, every time."""
    # The kernel may kill another before the first has given its memory back: not the shell, then.
    script = f"({GREEDY}); echo $?; exit 0"
    for _ in range(OOM_RUNS):
        result = sh(script, memory="16M", **only_the_greedy())
        assert (result.exit_code, result.oom_killed) == (0, True)
        assert result.stdout == "137\n"


@pytest.mark.needs("v2-controller:memory")
def test_out_of_memory_kills_all(sh: Shell) -> None:
    """On v2 a container dies as a whole by default: none is left with half of its processes."""
    result = sh("head -c 64M /dev/zero | tail -c 64M > /dev/null; exit 5", memory="16M")
    assert (result.signal, result.oom_killed) == (9, True)


def test_enough_memory_every_time(engine: Engine) -> None:
    """A container that stays below its limit is never called out of memory, even if killed."""
    for number in range(OOM_RUNS):
        words = ["--alloc", "4M"] + (["--signal", "11"] if number % 2 else [])
        result = engine.run(HELLO, words, memory="16M", stdout=DEVNULL)
        assert (result.returncode, result.oom_killed) == (-11 if number % 2 else 0, False)


def test_killed_by_hand_is_not_out_of_memory(engine: Engine) -> None:
    """The same signal from somebody else is told from the kernel's."""
    with engine.container(HELLO, ["--sleep", "1000"], memory="16M") as container:
        container.start()
        container.kill()
        record = container.wait()
    assert (record.signal, record.oom_killed, record.usage.oom_kills) == (9, False, 0)


def test_tmpfs_counts_as_memory(sh: Shell) -> None:
    """A filled tmpfs is charged to the container that filled it."""
    result = sh("head -c 128M /dev/zero > /dev/shm/x", memory="24M", shm_size="1G")
    assert result.oom_killed
    assert result.exit_code != 0
    assert result.usage.memory_peak_bytes is not None
    assert result.usage.memory_peak_bytes <= 24 * MIB


def test_page_cache_is_given_back(sh: Shell, disk_path: str) -> None:
    """Writing four times the limit to a disk is slow at worst, never out of memory."""
    result = sh(
        "dd if=/dev/zero of=/data/x bs=1M count=64 2>/dev/null && stat -c %s /data/x",
        memory="16M", volumes=[f"{disk_path}:/data"],
    )  # fmt: skip
    assert (result.exit_code, result.oom_killed) == (0, False)
    assert result.stdout == f"{64 * MIB}\n"
    assert result.usage.memory_peak_bytes is not None
    assert result.usage.memory_peak_bytes <= 16 * MIB


# ---- processes ---------------------------------------------------------------------------------


def test_fork_bomb_of_one(engine: Engine) -> None:
    """One program that forks without end gets as many processes as allowed."""
    words = ["--fork", "100000"]
    result = engine.run(HELLO, words, pids=64, capture_output=True, text=True)
    assert result.pids_limit_hit
    assert "forked 63 of 100000: EAGAIN" in result.stdout
    assert result.usage.pids_peak in (64, None)


def test_fork_bomb_of_all(engine: Engine, image: str) -> None:
    """A shell's fork bomb leaves the host alone, ends by its timeout, and leaves nothing."""
    script = "bomb() { bomb | bomb & }; bomb; exec sleep 987654"
    with engine.container(
        image, ["sh", "-c", script], pids=64, timeout=2, volumes=[userland.USR], stderr=DEVNULL
    ) as container:
        container.start()
        subprocess.run(["true"], check=True)
        assert engine.run(HELLO, ["--exit", "3"], stdout=DEVNULL).exit_code == 3
        assert (container.stats().pids_current or 0) <= 64
        record = container.wait()
    assert (record.signal, record.timed_out, record.pids_limit_hit) == (9, True, True)
    assert not _processes(b"bomb()")


def _processes(marker: bytes) -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if marker in command:
            found.append(entry)
    return found


# ---- CPU ---------------------------------------------------------------------------------------


def test_half_a_cpu(engine: Engine) -> None:
    """A busy container with half a CPU is throttled, and gets its quota in each such period."""
    result = engine.run(HELLO, ["--burn", "2"], cpus=0.5, stdout=DEVNULL)
    usage = result.usage
    assert usage.cpu_usec is not None
    assert usage.cpu_periods is not None
    assert usage.cpu_throttled_periods is not None
    assert usage.cpu_throttled_periods > 0
    # On a busy machine it may get less than its quota, but not in a period that ended throttled.
    assert usage.cpu_usec > 0.7 * usage.cpu_throttled_periods * QUOTA_USEC
    wall_usec = (result.ended_at - result.started_at) * 1e6
    assert usage.cpu_usec < 0.65 * wall_usec


def test_two_processes_share_the_quota(sh: Shell) -> None:
    """The quota is the container's, not each process's."""
    burn = "while :; do :; done"
    result = sh(f"({burn}) & ({burn}) & wait", cpus=0.5, timeout=1)
    assert result.timed_out
    assert result.usage.cpu_usec is not None
    assert result.usage.cpu_usec < 0.65 * (result.ended_at - result.started_at) * 1e6


# ---- while it runs -----------------------------------------------------------------------------


def test_exec_out_of_its_own_memory(engine: Engine) -> None:
    """An exec with a smaller limit is killed alone: the container and other execs live on."""
    with engine.container(HELLO, ["--sleep", "1000"], memory="128M") as container:
        container.start()
        with container.popen(["/hello", "--sleep", "1000"], memory="8M", stdout=DEVNULL) as other:
            for _ in range(5):
                result = container.exec(["/hello", "--alloc", "32M"], memory="8M", stdout=DEVNULL)
                assert (result.signal, result.oom_killed) == (9, True)
            assert other.poll() is None
            assert container.status == Status.RUNNING
            result = container.exec(["/hello", "--alloc", "32M"], stdout=DEVNULL)
            assert (result.exit_code, result.oom_killed) == (0, False)


def test_memory_can_change(engine: Engine) -> None:
    """A new memory limit holds at once for whatever runs in the container, smaller or larger."""
    allocate = ["/hello", "--alloc", "32M"]
    words = {"memory": "128M", **only_the_greedy()}
    with engine.container(HELLO, ["--sleep", "1000"], **words) as container:
        container.start()
        assert container.exec(allocate, stdout=DEVNULL).exit_code == 0
        container.update(memory="8M")
        assert container.exec(allocate, stdout=DEVNULL).signal == 9
        container.update(memory="64M")
        assert container.exec(allocate, stdout=DEVNULL).exit_code == 0
        container.kill()
        assert container.wait().oom_killed


def test_pids_can_change(engine: Engine) -> None:
    """A new process limit holds at once."""
    forks = ["/hello", "--fork", "20"]
    with engine.container(HELLO, ["--sleep", "1000"], pids=50) as container:
        container.start()
        assert container.exec(forks, stdout=DEVNULL).exit_code == 0
        container.update(pids=10)
        assert container.exec(forks, stdout=DEVNULL).exit_code == 1


# ---- what can't be measured --------------------------------------------------------------------


def test_what_cannot_be_measured_is_none(engine: Engine) -> None:
    """Usage has numbers where the kernel has them, None elsewhere, and never a made up 0."""
    with engine.container(HELLO, ["--sleep", "1000"], memory="64M") as container:
        container.start()
        running = container.stats()
        container.kill()
        ended = container.wait().usage
    for usage in (running, ended):
        assert usage.cpu_usec is not None and usage.cpu_usec > 0
        assert usage.memory_peak_bytes is None or 0 < usage.memory_peak_bytes <= 64 * MIB
        assert usage.oom_kills == 0
        assert usage.pids_max_events == 0
        only_of_v2 = (usage.memory_max_events, usage.oom_events)
        assert only_of_v2 == ((0, 0) if is_v2("memory") else (None, None))
    assert running.pids_current == 1
    assert running.memory_current_bytes
    assert ended.memory_current_bytes is None and ended.pids_current is None


@pytest.mark.needs("v2-controller:memory")
def test_pressure_where_there_is_psi(engine: Engine) -> None:
    """Stall times are there exactly if the kernel accounts them for the cgroup."""
    usage: Usage = engine.run(HELLO, ["--burn", "0.1"], stdout=DEVNULL).usage
    has_psi = os.path.exists("/proc/pressure/cpu")
    for pressure in (usage.cpu_pressure, usage.memory_pressure, usage.io_pressure):
        assert (pressure is not None) == has_psi
