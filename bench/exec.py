"""How long it takes to run /true in a container that is running already.

``python bench/exec.py [--json] [--count N]``
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack

import common
import peers
from common import Contender, Figure, Setting

IN_PROCESS = "pycontain exec in process"


def exec_once(stack: ExitStack, used: Setting) -> Contender:
    """A contender that executes /true in a container that waits, started here."""
    import pycontain

    engine = pycontain.Engine(state_root=str(used.state_root), data_root=str(used.data_root))
    image = f"rootfs:{used.rootfs}"
    container = stack.enter_context(engine.container(image, ["/pause"], **common.NO_LIMITS))
    container.start()

    def run() -> float:
        started = time.perf_counter_ns()
        result = container.exec(["/true"])
        elapsed = (time.perf_counter_ns() - started) / 1e3
        if result.exit_code != 0:
            raise RuntimeError(f"pycontain exec: exit code {result.exit_code}")
        return elapsed

    return run


def measure(used: Setting, count: int) -> list[Figure]:
    """Our exec against those of crun and runc, interleaved."""
    with ExitStack() as stack:
        contenders: dict[str, Contender | None] = {IN_PROCESS: exec_once(stack, used)}
        for name in ("crun", "runc"):
            contenders[f"{name} exec"] = stack.enter_context(peers.oci_exec(name, used))
        samples = common.interleave({k: v for k, v in contenders.items() if v}, count)
    ours = samples.get(IN_PROCESS)
    return [
        *(common.spread(name, values) for name, values in samples.items()),
        common.ratio("in process / crun exec", ours, samples.get("crun exec"), 0.5),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--count", type=int, default=200, help="runs of each contender")
    options = parser.parse_args()
    common.enter_private_namespace()
    with common.setting() as used:
        figures = measure(used, options.count)
    return common.report("exec of /true", figures, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
