"""How exactly a CPU quota holds: a busy program with half a CPU, for some seconds.

``python bench/limits.py [--json] [--seconds N] [--cpus X]``

Runs where the host's cgroup controllers are (v1 or v2), so not in the namespace of the others.
Wants a CPU to itself: a period that was not throttled had too little CPU left for the quota.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import common
from common import Figure

DEVIATION_GOAL = 3.0  # percent of one CPU


def measure_quota(state_root: Path, data_root: Path, cpus: float, seconds: float) -> list[Figure]:
    """The share of one CPU that a busy container got, by the kernel's own accounting."""
    import pycontain

    engine = pycontain.Engine(state_root=str(state_root), data_root=str(data_root))
    result = engine.run(
        "pycontain/hello", ["--burn", f"{seconds:g}"], cpus=cpus, stdout=pycontain.DEVNULL
    )
    engine.prune()  # the empty parent cgroup
    usage = result.usage
    if result.exit_code != 0 or usage.cpu_usec is None:
        return [Figure("share of one CPU", None, "%", note=f"exit code {result.exit_code}")]
    share = usage.cpu_usec / 1e4 / (result.ended_at - result.started_at)
    note = f"{usage.cpu_throttled_periods} of {usage.cpu_periods} periods throttled"
    return [
        Figure(f"share of one CPU with cpus={cpus:g}, {seconds:g} s", share, "%", note=note),
        Figure("deviation from the quota", abs(share - cpus * 100), "%", DEVIATION_GOAL),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cpus", type=float, default=0.5)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: needs root")
    state_root = Path(tempfile.mkdtemp(prefix="pyc-bench-", dir="/run"))
    try:
        with tempfile.TemporaryDirectory(prefix="pycontain-bench-") as directory:
            data_root = Path(directory, "data")
            figures = measure_quota(state_root, data_root, options.cpus, options.seconds)
    finally:
        common.stop_monitor(state_root)
        shutil.rmtree(state_root)
    return common.report("limits", figures, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
