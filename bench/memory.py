"""What containers cost besides their own processes: the monitor, state, stats(), memory limits.

``python bench/memory.py [--json] [--containers N] [--count N] [--only monitor,stats,limit]``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import common
import peers
from common import Figure, Setting

IDLE_SEC = 5.0
PAGE_BYTES = 4096
LIMIT_STEP_BYTES = 16 << 10
LIMIT_CEILING_BYTES = 16 << 20
RUNS_PER_LIMIT = 3  # a limit counts as enough if /true ran under it this often in a row


def _engine(used: Setting) -> Any:
    import pycontain

    return pycontain.Engine(state_root=str(used.state_root), data_root=str(used.data_root))


def measure_monitor(used: Setting, options: argparse.Namespace) -> list[Figure]:
    """Resident memory and idle CPU of the monitor pair with many containers alive."""
    engine = _engine(used)
    image = f"rootfs:{used.rootfs}"
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(engine.container(image, ["/pause"], **common.NO_LIMITS)).start()
        few_bytes = _resident_bytes(used)
        for _ in range(options.containers):
            stack.enter_context(engine.container(image, ["/pause"], **common.NO_LIMITS)).start()
        many_bytes = _resident_bytes(used)
        pids = common.monitor_pids(used.state_root)
        before = _cpu_nsec(pids)
        time.sleep(IDLE_SEC)  # the quantity measured is CPU time over a period
        idle = (_cpu_nsec(pids) - before) / 1e9 / IDLE_SEC
        state = _state_bytes(used) / (options.containers + 2)
    growth = max(0, many_bytes - few_bytes) / options.containers
    name = f"{options.containers} containers"
    return [
        Figure(f"monitor and keeper, resident, {name}", many_bytes / 2**20, "MiB", 1.5),
        Figure(f"monitor and keeper, idle CPU, {name}", idle * 100, "%", 0.01),
        Figure("monitor's growth per container", growth / 1024, "KiB"),
        Figure("state directory per container, in pages", state / 1024, "KiB"),
        Figure("overhead per container", (growth + state) / 1024, "KiB", 16),
    ]


def _resident_bytes(used: Setting) -> int:
    total = 0
    for pid in common.monitor_pids(used.state_root):
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            total += sum(int(line.split()[1]) for line in rollup if line.startswith("Rss:"))
    return total * 1024


def _cpu_nsec(pids: list[int]) -> int:
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)


def _state_bytes(used: Setting) -> int:
    """What the state directories take on a tmpfs: whole pages."""
    sizes = [p.stat().st_size for p in (used.state_root / "containers").rglob("*") if p.is_file()]
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes)


def measure_stats(used: Setting, options: argparse.Namespace) -> list[Figure]:
    """One `stats()` of a running container."""
    samples = []
    image = f"rootfs:{used.rootfs}"
    with _engine(used).container(image, ["/pause"], **common.NO_LIMITS) as container:
        container.start()
        for _ in range(options.count):
            started = time.perf_counter_ns()
            container.stats()
            samples.append((time.perf_counter_ns() - started) / 1e3)
    return [Figure("stats() of one container", common.p50(samples), "us", 100)]


def measure_limit(used: Setting, options: argparse.Namespace) -> list[Figure]:
    """The smallest memory limit under which /true runs, against crun's."""
    import pycontain

    engine = _engine(used)

    def ours(limit_bytes: int) -> bool:
        try:
            result = pycontain.run(
                f"rootfs:{used.rootfs}", ["/true"], memory=limit_bytes, engine=engine
            )
        except pycontain.PycontainError:
            return False
        return bool(result.exit_code == 0)

    our_limit = _smallest(ours)
    crun_limit = _smallest(_crun_under_limit(used)) if _has_v2_memory() else None
    note = "" if crun_limit else "crun: not on PATH, or no memory controller on cgroup v2 here"
    goal = crun_limit / 1024 if crun_limit else None
    value = our_limit / 1024 if our_limit else None
    return [
        Figure("smallest memory limit for true", value, "KiB", goal, note),
        Figure("crun's", goal, "KiB"),
    ]


def _has_v2_memory() -> bool:
    return "memory" in Path(common.CGROUP_ROOT, "cgroup.controllers").read_text().split()


def _crun_under_limit(used: Setting) -> Callable[[int], bool]:
    numbers = count()
    (used.cgroup / "cgroup.subtree_control").write_text("+memory")

    def runs(limit_bytes: int) -> bool:
        directory = used.scratch / f"limit-{next(numbers)}"
        bundle = peers.write_bundle(directory, used.rootfs, ["/true"], memory=limit_bytes)
        contender = peers.oci_runtime("crun", used, bundle)
        if contender is None:
            return False
        try:
            contender()
        except RuntimeError:
            return False
        return True

    return runs


def _smallest(runs: Callable[[int], bool]) -> int | None:
    """Bisect for the smallest sufficient limit; None if even the ceiling is not enough."""

    def enough(steps: int) -> bool:
        return all(runs(steps * LIMIT_STEP_BYTES) for _ in range(RUNS_PER_LIMIT))

    low, high = 0, LIMIT_CEILING_BYTES // LIMIT_STEP_BYTES
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * LIMIT_STEP_BYTES


PARTS: dict[str, Callable[[Setting, argparse.Namespace], list[Figure]]] = {
    "monitor": measure_monitor,
    "stats": measure_stats,
    "limit": measure_limit,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--count", type=int, default=1000, help="calls of stats()")
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    common.enter_private_namespace()
    figures: list[Figure] = []
    with common.setting() as used:
        for part in options.only.split(","):
            figures += PARTS[part](used, options)
    return common.report("memory and upkeep", figures, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
