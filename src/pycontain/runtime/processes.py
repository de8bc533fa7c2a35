"""What `top` shows: the processes of a container, as the host's /proc has them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from pycontain.values import frozen

__all__ = ["ProcessInfo", "describe"]


@frozen
class ProcessInfo:
    """One process. Pids are the host's; `uid` is the host's too; times in microseconds."""

    pid: int
    ppid: int
    uid: int
    command: str
    args: tuple[str, ...]
    cpu_usec: int
    rss_bytes: int
    started_at: float
    threads: int
    status: str


def describe(pids: Iterable[int]) -> list[ProcessInfo]:
    """Return what is known of each process; one that ends meanwhile is left out."""
    import psutil

    found = []
    for pid in sorted(pids):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                found.append(
                    ProcessInfo(
                        pid=pid,
                        ppid=process.ppid(),
                        uid=process.uids().real,
                        command=process.name(),
                        args=tuple(process.cmdline()),
                        cpu_usec=int((times.user + times.system) * 1e6),
                        rss_bytes=process.memory_info().rss,
                        started_at=process.create_time(),
                        threads=process.num_threads(),
                        status=process.status(),
                    )
                )
    return found
