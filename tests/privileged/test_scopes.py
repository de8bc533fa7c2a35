"""Containers on a systemd host: in a scope that systemd delegates, which lives as they do."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from pycontain import DEVNULL, Engine
from pycontain.isolation.cgroups_systemd import scope_name
from pycontain.runtime.state import Status

HELLO = "pycontain/hello"
FOREVER = ["--sleep", "1000"]
ROOT = Path("/sys/fs/cgroup")
WAIT_SEC = 30.0  # a hang, not a measure

pytestmark = [
    pytest.mark.vm,
    pytest.mark.needs("systemd", "v2-controller:memory", "v2-controller:pids"),
]


@pytest.fixture
def scope(engine: Engine) -> Path:
    """Where this state root's scope is, or will be."""
    return ROOT / "system.slice" / scope_name(engine.state_root)


def cgroup_of(pid: int) -> Path:
    name = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")
    return ROOT / name


def monitor(engine: Engine) -> tuple[int, int]:
    """Pids of the worker and of the keeper."""
    worker = engine.host.launcher.info().pid
    stat = Path(f"/proc/{worker}/stat").read_text()
    return worker, int(stat.rpartition(")")[2].split()[1])


def test_containers_are_in_the_scope(engine: Engine, scope: Path) -> None:
    """Each has a group with its limits beside the monitor's leaf; none is left when it is gone."""
    with engine.container(HELLO, FOREVER, memory="64M", pids=9) as container:
        container.start()
        assert container.pid is not None
        group = cgroup_of(container.pid)
        assert group == scope / container.id
        assert (group / "memory.max").read_text() == f"{64 << 20}\n"
        assert (group / "pids.max").read_text() == "9\n"
        for pid in monitor(engine):
            assert cgroup_of(pid) == scope / "monitor"
    assert not group.exists()
    assert (scope / "monitor").exists()


def test_scope_ends_with_the_monitor(engine: Engine, scope: Path) -> None:
    """Nobody has to stop the unit; the next container has it made anew."""
    for _ in range(2):
        assert engine.run(HELLO, ["--exit", "3"], memory="16M", stdout=DEVNULL).exit_code == 3
        assert scope.exists()
        kill(*reversed(monitor(engine)))
        deadline = time.monotonic() + WAIT_SEC
        while scope.exists():
            assert time.monotonic() < deadline


def test_next_monitor_enters_the_scope(engine: Engine, scope: Path) -> None:
    """A container keeps the scope when keeper and worker are killed; their successors join it."""
    with engine.container(HELLO, FOREVER, memory="64M", detach=True) as container:
        container.start()
        kill(*reversed(monitor(engine)))
        assert container.status == Status.RUNNING
        assert engine.run(HELLO, ["--alloc", "64M"], memory="16M", stdout=DEVNULL).oom_killed
        for pid in monitor(engine):
            assert cgroup_of(pid) == scope / "monitor"
        assert container.pid is not None
        assert cgroup_of(container.pid) == scope / container.id


def test_prune_removes_groups_in_the_scope(engine: Engine, scope: Path) -> None:
    """What a crash left of a container there is gone, and the scope itself stays."""
    assert engine.run(HELLO, ["--exit", "0"], stdout=DEVNULL).exit_code == 0
    left = scope / ("ab" * 32)
    left.mkdir()
    assert engine.prune().leftovers == (f"cgroup {left.relative_to(ROOT)}",)
    assert not left.exists()
    assert (scope / "monitor").exists()


def kill(*pids: int) -> None:
    """These processes have ended."""
    for pid in pids:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], WAIT_SEC)[0]
        finally:
            os.close(pidfd)
