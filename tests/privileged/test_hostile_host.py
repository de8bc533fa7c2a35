"""Inside a host program that does everything a library may hate: no code lost, nothing grows.

PYCONTAIN_HOSTILE_RUNS and PYCONTAIN_CYCLES say how many (120 and 300).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pycontain import DEVNULL, Engine

HELLO = "pycontain/hello"
RUNS = int(os.environ.get("PYCONTAIN_HOSTILE_RUNS", "120"))
CYCLES = int(os.environ.get("PYCONTAIN_CYCLES", "300"))
RSS_SLACK_BYTES = 8 << 20

pytestmark = pytest.mark.host


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Call `work` again and again in a thread for as long as the block lasts."""
    over = threading.Event()
    failed: list[BaseException] = []

    def loop() -> None:
        while not over.wait(0.0005):  # one CPU is left for the containers
            try:
                work()
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=loop, name=f"hostile-{work.__name__}")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failed, failed


def reap_everything() -> None:
    """What a supervisor or a test runner does: steal every child's status."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def make_threads() -> None:
    """Threads come and go, so that some hold locks at any moment."""
    threads = [threading.Thread(target=sum, args=(range(100),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def storm_the_heap() -> None:
    """malloc's locks are taken and memory moves."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    for size in (1 << 7, 1 << 14, 1 << 21):
        libc.free(libc.malloc(size))
    _ = [bytearray(100) for _ in range(1000)]


@contextmanager
def asyncio_with_subprocesses() -> Iterator[None]:
    """A loop in another thread that starts and waits for children of its own."""

    async def spawn() -> None:
        while not over.is_set():
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
            await process.wait()  # its status may be stolen: asyncio then says 255

    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(spawn()), name="hostile-asyncio")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.filterwarnings("ignore")  # asyncio complains of the stolen statuses
def test_every_exit_code_is_right(engine: Engine) -> None:
    """Many starts beside a thief of child statuses, thread churn, malloc storms and asyncio."""
    engine.run(HELLO, ["--exit", "0"])
    before = len(os.listdir("/proc/self/fd"))

    def one(number: int) -> tuple[int, int | None, bytes]:
        result = engine.run(HELLO, ["--exit", str(number % 251)], capture_output=True)
        return number % 251, result.exit_code, result.stdout

    with ExitStack() as stack:
        for work in (reap_everything, make_threads, storm_the_heap):
            stack.enter_context(beside(work))
        stack.enter_context(asyncio_with_subprocesses())
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(one, range(RUNS)))
    assert all(wanted == code and out == b"" for wanted, code, out in results)
    engine.host.launcher.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert engine.list() == []


def test_signals_interrupt_nothing(engine: Engine) -> None:
    """A program that gets signals all the time loses no start and no exit code (EINTR)."""
    import signal

    got = []
    old = signal.signal(signal.SIGALRM, lambda *_: got.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(40):
            result = engine.run(HELLO, ["--exit", str(number)], capture_output=True)
            assert result.exit_code == number
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert got


def test_ignored_children(engine: Engine) -> None:
    """A program that ignores SIGCHLD (the kernel reaps its children) can start a monitor."""
    import signal

    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert engine.run(HELLO, ["--exit", "9"]).exit_code == 9
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_no_descriptors_0_to_2(engine: Engine) -> None:
    """A daemon with its standard streams closed gets right results too."""
    code = (
        "import os\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "from pycontain import Engine, DEVNULL\n"
        "r = Engine().run('pycontain/hello', ['--exit', '5'], stdin=DEVNULL,\n"
        "                 capture_output=True)\n"
        "os._exit(r.exit_code + (100 if r.stdout or r.stderr else 0))\n"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5


# ---- nothing grows -----------------------------------------------------------------------------


def _counts(engine: Engine) -> dict[str, int]:
    layout = engine.host.layout()
    roots = [mount_point for _, mount_point in layout.v1] + [layout.v2_root or ""]
    parent = engine.host.cgroup_parent()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
        "cgroups": sum(len(list(Path(root, parent).rglob("*/"))) for root in set(roots) if root),
        "state files": len(list(Path(engine.state_root).rglob("*"))),
        "data files": len(list(Path(engine.data_root, "containers").rglob("*"))),
        "monitor's descriptors": len(os.listdir(f"/proc/{_monitor(engine)}/fd")),
        "monitor's threads and children": len(os.listdir(f"/proc/{_monitor(engine)}/task")),
    }


def _monitor(engine: Engine) -> int:
    return engine.host.launcher.info().pid


def _rss_bytes(pid: int | str) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_nothing_grows(engine: Engine) -> None:
    """Cycles of start, exec, wait and remove leave nothing: files, cgroups, memory."""

    def cycle() -> None:
        with engine.container(HELLO, ["--sleep", "1000"], memory="32M", pids=16) as container:
            container.start()
            assert container.exec(["/hello", "--exit", "2"], stdout=DEVNULL).exit_code == 2
            container.kill()
            assert container.wait().signal == 9

    for _ in range(20):  # caches fill
        cycle()
    gc.collect()
    before, memory = _counts(engine), (_rss_bytes("self"), _rss_bytes(_monitor(engine)))
    for _ in range(CYCLES):
        cycle()
    gc.collect()
    _settle(engine, before)
    assert _counts(engine) == before
    assert _rss_bytes("self") < memory[0] + RSS_SLACK_BYTES
    assert _rss_bytes(_monitor(engine)) < memory[1] + (1 << 20)


def _settle(engine: Engine, before: dict[str, int]) -> None:
    """The monitor closes what it no longer needs a moment after it said that it was over."""
    deadline = time.monotonic() + 20
    while _counts(engine) != before and time.monotonic() < deadline:
        time.sleep(0.01)
