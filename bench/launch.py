"""How long a start takes: in process, beside a large program, under load, and from the shell.

``python bench/launch.py [--json] [--count N] [--only start,slope,rate,shell]``
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import common
import peers
from common import Contender, Figure, Setting

IN_PROCESS = "pycontain in process"
SMALL_BYTES, LARGE_BYTES = 20 << 20, 2 << 30
CLIENTS = 2


def start_once(used_rootfs: str, state_root: str, data_root: str) -> Contender:
    """A contender that starts /true in this process and waits for its exit record."""
    import pycontain

    engine = pycontain.Engine(state_root=state_root, data_root=data_root)
    image = f"rootfs:{used_rootfs}"

    def run() -> float:
        started = time.perf_counter_ns()
        result = pycontain.run(image, ["/true"], pids=-1, engine=engine)
        elapsed = (time.perf_counter_ns() - started) / 1e3
        if result.exit_code != 0:
            raise RuntimeError(f"pycontain: exit code {result.exit_code}")
        return elapsed

    return run


def floor_command(used: Setting, *options: str) -> list[str]:
    """The coprocess that does the bare kernel calls, with pycontain's own filter."""
    from pycontain.isolation import capabilities, seccomp

    scratch = used.scratch / ("floor" + "".join(options))
    scratch.mkdir()
    program = str(common.BUILD / "floor")
    filter_path = scratch / "filter"
    filter_path.write_bytes(seccomp.default_filter(capabilities.parse(peers.CAPABILITIES)))
    roots = ["--rootfs", str(used.rootfs), "--cgroup", str(used.cgroup)]
    return [program, *roots, "--scratch", str(scratch), "--filter", str(filter_path), *options]


def measure_start(used: Setting, count: int) -> list[Figure]:
    """In-process start to exit against the floor and the peers, interleaved."""
    bundle = peers.write_bundle(used.scratch / "bundle", used.rootfs, ["/true"])
    with ExitStack() as stack:
        contenders: dict[str, Contender | None] = {
            IN_PROCESS: _ours(used),
            "floor": stack.enter_context(common.coprocess(floor_command(used))),
            "crun run": peers.oci_runtime("crun", used, bundle),
            "runc run": peers.oci_runtime("runc", used, bundle),
            "bwrap (no cgroup, no filter)": peers.bubblewrap(used),
        }
        samples = common.interleave({k: v for k, v in contenders.items() if v}, count)
    ours = samples.get(IN_PROCESS)
    return [
        *(common.spread(name, values) for name, values in samples.items()),
        common.ratio("in process / crun run", ours, samples.get("crun run"), 0.4),
        common.ratio("in process / floor", ours, samples.get("floor"), 1.3),
    ]


def _ours(used: Setting) -> Contender | None:
    try:
        return start_once(str(used.rootfs), str(used.state_root), str(used.data_root))
    except (ImportError, AttributeError) as error:
        print(f"bench: pycontain left out: {error}", file=sys.stderr)
        return None


def measure_slope(used: Setting, count: int) -> list[Figure]:
    """The same start from a program with 2 GB of touched memory and from one with 20 MB."""
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(common.coprocess(_host_command(used, size)))
            for name, size in (("20 MB host program", SMALL_BYTES), ("2 GB", LARGE_BYTES))
        }
        samples = common.interleave(contenders, count)
    small, large = samples.get("20 MB host program"), samples.get("2 GB")
    slope = (common.p50(large) - common.p50(small)) / 1e3 if small and large else None
    figures = [common.spread(f"start from a {name}", values) for name, values in samples.items()]
    return [*figures, Figure("slope from 20 MB to 2 GB", slope, "ms", 0.3)]


def _host_command(used: Setting, size_bytes: int) -> list[str]:
    roots = [str(used.rootfs), str(used.state_root), str(used.data_root)]
    return [sys.executable, __file__, "--host-program", str(size_bytes), *roots]


def host_program(size_bytes: int, rootfs: str, state_root: str, data_root: str) -> None:
    """The coprocess of `measure_slope`: touches its memory, then starts one container a line."""
    ballast = bytearray(size_bytes)
    for offset in range(0, size_bytes, 4096):
        ballast[offset] = 1
    run = start_once(rootfs, state_root, data_root)
    for _ in sys.stdin:
        print(f"{run():.1f}", flush=True)


def measure_rate(used: Setting, count: int) -> list[Figure]:
    """Starts per second: two client threads of one program against two loops of ``crun run``."""
    ours = _per_second([_ours(used) for _ in range(CLIENTS)], count)
    bundles = [
        peers.write_bundle(used.scratch / f"rate-{i}", used.rootfs, ["/true"])
        for i in range(CLIENTS)
    ]
    crun = _per_second([peers.oci_runtime("crun", used, bundle) for bundle in bundles], count)
    share = crun / ours if ours and crun else None
    return [
        Figure(f"starts per second, {CLIENTS} client threads", ours, "/s"),
        Figure(f"crun run, {CLIENTS} loops", crun, "/s"),
        Figure("crun's rate / ours", share, "x", 0.5),
    ]


def _per_second(clients: list[Contender | None], count: int) -> float | None:
    """Run every client ``count`` times in a thread of its own; return all starts per second."""
    running = [client for client in clients if client]
    if len(running) != len(clients):
        return None
    for client in running:
        client()

    def loop(client: Contender) -> None:
        for _ in range(count):
            client()

    threads = [threading.Thread(target=loop, args=(client,)) for client in running]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count * len(running) / (time.perf_counter() - started)


def measure_shell(used: Setting, count: int) -> list[Figure]:
    """``pycontain run`` as typed, Python's start included, against in process and podman."""
    program = Path(sys.executable).with_name("pycontain")
    environment = {
        **os.environ,
        "PYCONTAIN_STATE": str(used.state_root),
        "PYCONTAIN_DATA": str(used.data_root),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    options = ["--rm", "--pids-limit", "-1", "--rootfs", str(used.rootfs)]
    command = [str(program), "run", *options, "/true"]
    contenders: dict[str, Contender | None] = {
        "pycontain run": lambda: common.spawn_usec(command, env=environment),
        IN_PROCESS: _ours(used),
        "python -c pass": lambda: common.spawn_usec([sys.executable, "-c", "pass"]),
        "podman run --network none": peers.podman(used),
    }
    samples = common.interleave({k: v for k, v in contenders.items() if v}, count)
    shell, inside = samples.get("pycontain run"), samples.get(IN_PROCESS)
    extra = (common.p50(shell) - common.p50(inside)) / 1e3 if shell and inside else None
    podman = samples.get("podman run --network none")
    return [
        *(common.spread(name, values) for name, values in samples.items() if name != IN_PROCESS),
        Figure("pycontain run, over in process", extra, "ms", 60),
        common.ratio("pycontain run / podman run", shell, podman, 0.5),
    ]


PARTS: dict[str, Callable[[Setting, int], list[Figure]]] = {
    "start": measure_start,
    "slope": measure_slope,
    "rate": measure_rate,
    "shell": measure_shell,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--count", type=int, default=200, help="runs of each contender")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--host-program", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host_program:
        size, *roots = options.host_program
        host_program(int(size), *roots)
        return 0
    common.enter_private_namespace()
    figures: list[Figure] = []
    with common.setting() as used:
        for part in options.only.split(","):
            figures += PARTS[part](used, options.count)
    return common.report("launch: /true, start to exit", figures, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
