"""What the benchmarks share: one setting for every contender, interleaved runs, one report.

Every contender (pycontain too) runs in a private mount namespace whose /sys/fs/cgroup is one plain
cgroup2 mount, because crun refuses hybrid hosts; starts the same static program; and has the same
namespaces, mounts, masks, capabilities and system call filter. Runs are interleaved, so that a
busy moment of the machine hits all of them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
CGROUP_ROOT = "/sys/fs/cgroup"
NAMESPACE_FLAG = "PYCONTAIN_BENCH_NAMESPACE"

# The plain cgroup2 of a hybrid host has no controllers, and the peers' bundles ask for none.
NO_LIMITS: dict[str, Any] = {"pids": -1}

Contender = Callable[[], float]  # runs once, returns microseconds


def enter_private_namespace() -> None:
    """Re-execute this program where nothing is mounted on /sys/fs/cgroup but one cgroup2."""
    if NAMESPACE_FLAG in os.environ:
        return
    if os.geteuid() != 0:
        sys.exit("bench: needs root")
    os.environ[NAMESPACE_FLAG] = "1"
    plain = os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers")
    mount = "" if plain else f"mount -t cgroup2 none {CGROUP_ROOT} && "
    command = [sys.executable, *sys.argv]
    shell = ["sh", "-c", mount + 'exec "$@"', "sh", *command]
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *shell])


def build_programs() -> Path:
    """Return the directory of `floor`, `true` and `pause`, compiled if older than their source."""
    BUILD.mkdir(parents=True, exist_ok=True)
    bare = ["-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s"]
    for name, options in (("floor", ["-static"]), ("true", bare), ("pause", bare)):
        source, target = HERE / f"{name}.c", BUILD / name
        if not target.exists() or (
            source.stat().st_mtime > target.stat().st_mtime and shutil.which("cc")
        ):
            subprocess.run(["cc", "-O2", "-Wall", *options, "-o", target, source], check=True)
    return BUILD


@dataclass(frozen=True, slots=True)
class Setting:
    """Directories that every contender of one run uses."""

    scratch: Path
    rootfs: Path  # /true, /pause and mount points
    cgroup: Path  # parent of the floor's and the peers' groups
    state_root: Path  # pycontain's, empty at the start
    data_root: Path


@contextmanager
def setting() -> Iterator[Setting]:
    """Make the directories; remove them and the cgroup afterwards."""
    programs = build_programs()
    cgroup = Path(CGROUP_ROOT, f"pycontain-bench-{os.getpid()}")
    state = Path(tempfile.mkdtemp(prefix="pyc-bench-", dir="/run"))
    with tempfile.TemporaryDirectory(prefix="pycontain-bench-") as directory:
        scratch = Path(directory)
        rootfs = scratch / "rootfs"
        for name in ("proc", "sys", "dev", "etc", "tmp"):
            (rootfs / name).mkdir(parents=True)
        for name in ("true", "pause"):
            shutil.copy(programs / name, rootfs / name)
        (rootfs / "etc/passwd").write_text("root:x:0:0:root:/:/true\n")
        cgroup.mkdir()
        try:
            yield Setting(scratch, rootfs, cgroup, state, scratch / "data")
        finally:
            stop_monitor(state)
            for path, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(path)
            shutil.rmtree(state)


def spawn_usec(command: list[str], *, env: Mapping[str, str] | None = None) -> float:
    """Run a program with /dev/null as stdio; return microseconds from spawn to exit.

    Raises:
        RuntimeError: it did not exit with 0.
    """
    started = time.perf_counter_ns()
    actions = [(os.POSIX_SPAWN_DUP2, _null(), fd) for fd in (0, 1)]
    pid = os.posix_spawn(command[0], command, os.environ if env is None else env,
                         file_actions=actions)  # fmt: skip
    _, status = os.waitpid(pid, 0)
    elapsed = (time.perf_counter_ns() - started) / 1e3
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"exit code {code}: {' '.join(command)}")
    return elapsed


def monitor_pids(state_root: Path) -> list[int]:
    """The monitor's worker and keeper, or nothing if none runs for this state root."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        try:
            client.connect(str(state_root / "monitor.sock"))
        except OSError:
            return []
        from pycontain import _native

        client.send(_native.encode_request(_native.C.PYC_REQ_INFO))
        worker = _native.decode_reply(client.recv(1 << 16)).pid
    keeper = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    kept = Path(f"/proc/{keeper}/comm").read_text() == "pyc:keeper\n"
    return [worker, keeper] if kept else [worker]


def stop_monitor(state_root: Path) -> None:
    """Ask the monitor to leave, and wait until it has."""
    pidfds = [os.pidfd_open(pid) for pid in monitor_pids(state_root)]
    if not pidfds:
        return
    from pycontain import _native

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(state_root / "monitor.sock"))
        client.send(_native.encode_request(_native.C.PYC_REQ_SHUTDOWN))
        client.recv(1 << 16)
    for pidfd in pidfds:
        select.select([pidfd], [], [], 10)
        os.close(pidfd)


_null_fd = -1


def _null() -> int:
    global _null_fd
    if _null_fd < 0:
        _null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return _null_fd


@contextmanager
def coprocess(command: list[str]) -> Iterator[Contender]:
    """A contender that lives in a process of its own: a line in, one run, its microseconds out."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, bufsize=1, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, replies = process.stdin, process.stdout

        def run() -> float:
            requests.write("\n")
            requests.flush()
            reply = replies.readline()
            if not reply:
                raise RuntimeError(f"ended early: {' '.join(command)}")
            return float(reply)

        yield run
        requests.close()


def interleave(contenders: Mapping[str, Contender], count: int) -> dict[str, list[float]]:
    """Run each contender ``count`` times in turns; return the microseconds of each run.

    Two warm-up rounds are not counted. A contender that cannot run here is reported on stderr and
    left out.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for round_index in range(-2, count):
        for name, run in contenders.items():
            if name not in samples:
                continue
            try:
                usec = run()
            except (RuntimeError, OSError) as error:
                print(f"bench: {name} left out: {error}", file=sys.stderr)
                del samples[name]
                continue
            if round_index >= 0:
                samples[name].append(usec)
    return samples


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure, and the bound that it is to keep (None: reported only)."""

    name: str
    value: float | None
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None without a bound or a value."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal


def p50(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(name: str, values: list[float]) -> Figure:
    """The median of a contender, its tenth and ninetieth percentile in the note."""
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    note = f"p10 {tenths[0] / 1e3:.2f}, p90 {tenths[-1] / 1e3:.2f}, n={len(values)}"
    return Figure(name, p50(values) / 1e3, "ms", note=note)


def ratio(name: str, ours: list[float] | None, other: list[float] | None, goal: float) -> Figure:
    """Our median as a multiple of another contender's; None if one of them did not run."""
    if not ours or not other:
        return Figure(name, None, "x", goal, "a contender is missing")
    return Figure(name, p50(ours) / p50(other), "x", goal)


def report(title: str, figures: list[Figure], *, as_json: bool) -> int:
    """Print the figures; return 1 if one misses its goal, else 0."""
    if as_json:
        rows = [
            {"name": f.name, "value": f.value, "unit": f.unit, "goal": f.goal, "met": f.met,
             "note": f.note}
            for f in figures
        ]  # fmt: skip
        kernel = os.uname().release
        print(json.dumps({"title": title, "kernel": kernel, "figures": rows}, indent=1))
    else:
        print(title)
        for f in figures:
            value = "-" if f.value is None else f"{f.value:.2f} {f.unit}"
            goal = "" if f.goal is None else f"<= {f.goal:g} {f.unit}"
            verdict = {None: "", True: "met", False: "MISSED"}[f.met]
            print(f"  {f.name:<44} {value:>12}  {goal:<12} {verdict:<7} {f.note}")
    return 1 if any(f.met is False for f in figures) else 0
