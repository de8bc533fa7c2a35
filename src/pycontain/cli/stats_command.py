"""`stats` and `top`: what containers use, and their processes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.cli.format import FORMAT, print_rows
from pycontain.cli.tables import size
from pycontain.errors import NotFound, WrongState
from pycontain.runtime.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain.cli.app import Context
    from pycontain.engine import Engine
    from pycontain.runtime.container import Container
    from pycontain.usage import Usage

__all__ = ["COMMANDS", "Sampler"]

_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
)
_INTERVAL_SEC = 1.0
_FIRST_INTERVAL_SEC = 0.2  # long enough for a percentage, short enough to wait for
_HOME, _CLEAR_LINE, _CLEAR_BELOW, _CLEAR = "\033[H", "\033[K", "\033[J", "\033[2J"
_UNKNOWN = "--"


class Sampler:
    """Rows of `stats`; CPU percentages are of the time since the sampler's previous rows."""

    def __init__(self) -> None:
        self._previous: dict[str, tuple[float, int]] = {}
        self._host_memory_bytes = _host_memory_bytes()
        self._limits: dict[str, int] = {}

    def rows(self, containers: Sequence[Container]) -> list[dict[str, Any]]:
        """One row per container, under docker's keys; a container that has ended has no figures."""
        rows = []
        for container in containers:
            try:
                usage = container.stats()
            except (NotFound, WrongState):
                usage = None
            rows.append(self._row(container, usage))
        return rows

    def _row(self, container: Container, usage: Usage | None) -> dict[str, Any]:
        row = {"ID": container.short_id, "Container": container.short_id, "Name": container.name}
        if usage is None:
            return row | dict.fromkeys((key for _, key in _COLUMNS[2:]), _UNKNOWN)
        used = usage.memory_current_bytes
        if used is not None and usage.memory_file_bytes is not None:
            used = max(used - usage.memory_file_bytes, 0)  # without page cache, as docker has it
        limit = self._limit_bytes(container)
        percent = None if used is None or not limit else 100 * used / limit
        read = written = None
        if usage.io is not None:
            read = sum(device.read_bytes for device in usage.io)
            written = sum(device.write_bytes for device in usage.io)
        return row | {
            "CPUPerc": _percent(self._cpu_percent(container, usage)),
            "MemUsage": f"{_bytes(used)} / {_bytes(limit)}",
            "MemPerc": _percent(percent),
            "BlockIO": f"{size(read)} / {size(written)}",
            "PIDs": _UNKNOWN if usage.pids_current is None else str(usage.pids_current),
        }

    def _cpu_percent(self, container: Container, usage: Usage) -> float | None:
        """CPU time per wall clock time since the last call; 100 is one whole CPU."""
        now = time.monotonic()
        if usage.cpu_usec is None:
            return None
        then, cpu_usec = self._previous.get(container.id, (0.0, 0))
        self._previous[container.id] = (now, usage.cpu_usec)
        if not then or now <= then:
            return None
        return max(usage.cpu_usec - cpu_usec, 0) / (now - then) / 1e4

    def _limit_bytes(self, container: Container) -> int | None:
        """Its memory limit, or the host's memory without one; read once."""
        if container.id not in self._limits:
            resources = container.inspect()["HostConfig"]["Resources"]
            limit = int(resources.get("memory_max_bytes") or 0)
            self._limits[container.id] = limit if limit > 0 else self._host_memory_bytes
        return self._limits[container.id] or None


def _host_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def _bytes(count: int | None) -> str:
    return _UNKNOWN if count is None else format_bytes(count)


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}%"


def _stats(arguments: Arguments, context: Context) -> int:
    """Print what containers use: once, or again every second until ctrl-C."""
    engine = context.engine()
    sampler = Sampler()
    sampler.rows(_chosen(engine, arguments))
    time.sleep(_FIRST_INTERVAL_SEC)
    if arguments.no_stream:
        print_rows(sampler.rows(_chosen(engine, arguments)), arguments.format, _COLUMNS)
        return 0
    in_place = sys.stdout.isatty() and arguments.format != "json"
    if in_place:
        sys.stdout.write(_CLEAR)
    while True:
        _draw(sampler.rows(_chosen(engine, arguments)), arguments.format, in_place)
        time.sleep(_INTERVAL_SEC)


def _chosen(engine: Engine, arguments: Arguments) -> list[Container]:
    if arguments.operands:
        return [engine.get(reference) for reference in arguments.operands]
    containers = engine.list()
    if not arguments.all:
        containers = [one for one in containers if one.status in ("running", "paused")]
    return sorted(containers, key=lambda container: container.created_at, reverse=True)


def _draw(rows: list[dict[str, Any]], layout: str | None, in_place: bool) -> None:
    """Print `rows`, over the ones before if `in_place`, in one write so that nothing flickers."""
    if not in_place:
        print_rows(rows, layout, _COLUMNS)
        sys.stdout.flush()
        return
    from contextlib import redirect_stdout
    from io import StringIO

    from pycontain.cli.tables import terminal_columns

    text = StringIO()
    columns = terminal_columns()
    with redirect_stdout(text):
        print_rows(rows, layout, _COLUMNS, width=columns)
    lines = text.getvalue().splitlines()
    drawn = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
    sys.stdout.write(_HOME + drawn + _CLEAR_BELOW)
    sys.stdout.flush()


_TOP_COLUMNS = (
    ("USER", "User"),
    ("PID", "PID"),
    ("PPID", "PPID"),
    ("RSS", "RSS"),
    ("TIME", "Time"),
    ("COMMAND", "Command"),
)


def _top(arguments: Arguments, context: Context) -> int:
    """Print the processes of a container, with their ids on the host."""
    rows = []
    for process in context.engine().get(arguments.operands[0]).top():
        seconds = process.cpu_usec // 1_000_000
        rows.append(
            {
                "User": _user_name(process.uid),
                "PID": process.pid,
                "PPID": process.ppid,
                "RSS": format_bytes(process.rss_bytes),
                "Time": f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
                "Command": " ".join(process.args) or f"[{process.command}]",
            }
        )
    print_rows(rows, arguments.format, _TOP_COLUMNS)
    return 0


def _user_name(uid: int) -> str:
    """The host's name for a uid; what a container's user is called there, only it knows."""
    from pwd import getpwuid

    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


COMMANDS = {
    "stats": Command(
        "show what containers use, as it changes",
        "[CONTAINER...]",
        _stats,
        (
            Option(("-a", "--all"), "also those that do not run"),
            Option(("--no-stream",), "print one sample and end"),
            FORMAT,
        ),
        most=None,
        complete="container",
    ),
    "top": Command(
        "list the processes of a container",
        "CONTAINER",
        _top,
        (FORMAT,),
        least=1,
        most=1,
        complete="container",
    ),
}
