"""Fixtures of the tests that need a real kernel and root.

Each test has a state root and a data root of its own (``PYCONTAIN_STATE``, ``PYCONTAIN_DATA``),
and fails if it leaves anything behind: see leaks.py. With PYCONTAIN_MUST_RUN=1 a skip is a
failure, and the machine is looked at too, not only what the test owns; without it other programs
may use pycontain on the same machine meanwhile.

The VM (cgroup v2, systemd) runs all of them but those marked ``host``; a test marked ``vm`` may
skip outside it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import select
import shutil
import signal
import socket
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import leaks

if TYPE_CHECKING:
    from pycontain import Engine

MUST_RUN = os.environ.get("PYCONTAIN_MUST_RUN") == "1"
IN_VM = os.environ.get("PYCONTAIN_IN_VM") == "1"
# What one venue lacks by design and another may have: such a skip is never a failure.
ELSEWHERE = (
    (
        "needs v1-controller",
        "needs kernel:6.8",
        "needs kernel:6.1",  # 6.15
        "needs node",
        "needs program:umoci",
        "needs program:skopeo",
    )
    if IN_VM
    else ("needs v1-controller", "needs v2-controller", "needs systemd")
)
SHUTDOWN_TIMEOUT_MSEC = 30_000  # a hang, not a measure: the monitor leaves at once


# ---- skips -------------------------------------------------------------------------------


def _lack_root() -> bool:
    return os.geteuid() != 0


def _lack_program(name: str) -> bool:
    return shutil.which(name) is None


def _lack_kernel(version: str) -> bool:
    release = platform.release().split("-")[0].split(".")
    return tuple(map(int, release[:2])) < tuple(map(int, version.split(".")[:2]))


def _lack_controller(name: str) -> bool:
    """On the v2 tree that systemd or the test's namespace mounts at /sys/fs/cgroup."""
    try:
        return name not in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    except OSError:
        return True


def _lack_file(path: str) -> bool:
    return not os.path.exists(path)


def _lack_systemd() -> bool:
    return not os.path.isdir("/run/systemd/system")


LACKS: dict[str, Callable[..., bool]] = {
    "root": _lack_root,
    "program": _lack_program,
    "kernel": _lack_kernel,
    "v2-controller": _lack_controller,
    "file": _lack_file,
    "systemd": _lack_systemd,
}


def needs_now(*capabilities: str) -> None:
    """Skip the running test, naming the first capability that this machine lacks.

    Each is a word or ``word:argument``: root, systemd, program:crun, kernel:6.15,
    v2-controller:memory, file:/dev/fuse.
    """
    for capability in capabilities:
        word, _, argument = capability.partition(":")
        if LACKS[word](*([argument] if argument else [])):
            pytest.skip(f"needs {capability}")


@pytest.fixture
def needs() -> Callable[..., None]:
    """``needs("program:crun", "kernel:6.15")``: skip unless the machine has all of them."""
    return needs_now


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: needs what the VM has, and may skip outside it")
    config.addinivalue_line("markers", "host: too long for the VM, or about the host")
    config.addinivalue_line("markers", "needs(*capabilities): skips unless the machine has all")


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs_now("root")
    for mark in item.iter_markers("needs"):
        needs_now(*mark.args)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip into a failure where everything must run."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if not MUST_RUN or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    elsewhere = item.get_closest_marker("vm") is not None and not IN_VM
    if not elsewhere and not any(words in reason for words in ELSEWHERE):
        report.outcome = "failed"
        report.longrepr = f"PYCONTAIN_MUST_RUN=1 and {reason}"


# ---- roots, monitor, leaks ------------------------------------------------------------------


@pytest.fixture(autouse=True)
def state_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state root of this test's own; short, because socket paths end at 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="pyc-test-", dir="/run"))
    monkeypatch.setenv("PYCONTAIN_STATE", str(path))
    yield path
    shutil.rmtree(path)
    # The parent of its containers' cgroups, which only `prune` removes: tests make one root each.
    parent = f"pycontain-{zlib.crc32(os.fsencode(str(path))):08x}"
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        with contextlib.suppress(OSError):
            (hierarchy / parent).rmdir()


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of this test's own."""
    path = tmp_path / "data"
    monkeypatch.setenv("PYCONTAIN_DATA", str(path))
    return path


@pytest.fixture(autouse=True)
def leak_guard(state_root: Path, data_root: Path) -> Iterator[None]:
    """Fails the test if anything that it made outlives it."""
    machine = leaks.of_machine() if MUST_RUN else leaks.Snapshot()
    process = leaks.of_process()
    yield
    forget_default_engine()
    gc.collect()  # what a caught error still refers to cleans up now, not after us
    left = stop_monitor(state_root)
    if leaks.difference(process, leaks.of_process()):
        gc.collect()  # what only a reference cycle held is late, not lost
    left += leaks.difference(process, leaks.of_process())
    left += leaks.difference(leaks.Snapshot(), leaks.of_roots(state_root, data_root))
    if MUST_RUN:
        left += leaks.difference(machine, leaks.of_machine())
    if left:
        pytest.fail("\n".join(left), pytrace=False)


@pytest.fixture
def engine(state_root: Path, data_root: Path) -> Iterator[Engine]:
    """An engine with empty stores; its monitor is stopped after the test."""
    from pycontain import Engine

    with Engine(state_root=str(state_root), data_root=str(data_root)) as made:
        yield made
        made.prune()


def forget_default_engine() -> None:
    """Make ``pycontain.run`` of the next test see the roots of that test."""
    module = sys.modules.get("pycontain.engine")
    if module is not None:
        module._default = None  # type: ignore[attr-defined]


def stop_monitor(root: Path) -> list[str]:
    """Ask the monitor of a state root to leave and wait until it has; return its complaints.

    A monitor that still has a container is a leak: it and the container are killed then, so that
    one bad test does not spoil the next.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(str(root / "monitor.sock"))
        except OSError:
            return []  # no monitor was started, or it has left
        from pycontain import _native

        client.settimeout(SHUTDOWN_TIMEOUT_MSEC / 1000)
        monitors = [os.pidfd_open(pid) for pid in _monitor_pids(client)]
        client.send(_native.encode_request(_native.C.PYC_REQ_SHUTDOWN))
        reply = _native.decode_reply(client.recv(1 << 16))
    try:
        if reply.kind == _native.C.PYC_REP_OK:
            return [] if _all_ended(monitors) else [f"the monitor of {root} does not leave"]
        return [f"left behind: a living container under {root}", *_kill_all(root, monitors)]
    finally:
        for pidfd in monitors:
            os.close(pidfd)


def _monitor_pids(client: socket.socket) -> list[int]:
    """The monitor's worker, and its keeper unless that has died."""
    from pycontain import _native

    client.send(_native.encode_request(_native.C.PYC_REQ_INFO))
    worker = _native.decode_reply(client.recv(1 << 16)).pid
    stat = Path(f"/proc/{worker}/stat").read_text()
    keeper = int(stat.rpartition(")")[2].split()[1])
    kept = Path(f"/proc/{keeper}/comm").read_text() == "pyc:keeper\n"
    return [worker, keeper] if kept else [worker]


def _all_ended(pidfds: list[int]) -> bool:
    for pidfd in pidfds:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(SHUTDOWN_TIMEOUT_MSEC):
            return False
    return True


def _kill_all(root: Path, monitors: list[int]) -> list[str]:
    from pycontain import Engine
    from pycontain.errors import PycontainError

    problems = []
    for container in Engine(state_root=str(root)).list():
        problems.append(f"left behind: container {container.id} ({container.status})")
        try:
            container.remove(force=True)
        except PycontainError as error:  # reported with the leak that it is part of
            problems.append(f"removing it: {error}")
    for pidfd in reversed(monitors):  # the keeper first, or it would restart the worker
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return problems if _all_ended(monitors) else [*problems, "a killed monitor does not end"]
