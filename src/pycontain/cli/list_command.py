"""`ps`: the containers, in docker's columns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option, UsageError
from pycontain.cli.format import FORMAT, print_rows
from pycontain.cli.run_options import unsigned
from pycontain.cli.tables import ago, cut

if TYPE_CHECKING:
    from pycontain.cli.app import Context
    from pycontain.runtime.container import Container

__all__ = ["COMMANDS", "matches", "row_of"]

_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("NAMES", "Names"),
)
_COMMAND_LENGTH = 20
_FILTERS = ("name", "id", "label", "status", "exited", "ancestor", "before", "since")
_ALIVE = ("running", "paused")


def _ps(arguments: Arguments, context: Context) -> int:
    """Print the running containers, or all of them."""
    filters = _read_filters(arguments.filter)
    everything = context.engine().list()
    containers = [one for one in everything if not _is_leaving(one)]
    containers.sort(key=lambda container: container.created_at, reverse=True)
    last = 1 if arguments.latest else unsigned(arguments.last, "--last", least=-1)
    if not (arguments.all or last is not None or {"status", "exited"} & filters.keys()):
        containers = [container for container in containers if container.status in _ALIVE]
    containers = _within(containers, filters, everything)
    containers = [container for container in containers if matches(container, filters)]
    if last is not None and last >= 0:
        containers = containers[:last]
    if arguments.quiet:
        for container in containers:
            print(container.id if arguments.no_trunc else container.short_id)
        return 0
    now = time.time()
    rows = [row_of(container, now, whole=arguments.no_trunc) for container in containers]
    print_rows(rows, arguments.format, _COLUMNS)
    return 0


def _is_leaving(container: Container) -> bool:
    """Whether it has ended and was to be removed then (`run -d --rm`): the next sweep does it."""
    return container.blueprint.auto_remove and container.status == "exited"


def row_of(container: Container, now: float, *, whole: bool = False) -> dict[str, Any]:
    """What `ps` says about `container`, under docker's keys; `whole` cuts nothing short."""
    command = " ".join(container.args)
    created = time.localtime(container.created_at)
    return {
        "ID": container.id if whole else container.short_id,
        "Image": container.image,
        "Command": f'"{command if whole else cut(command, _COMMAND_LENGTH)}"',
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z %Z", created),
        "RunningFor": f"{ago(now - container.created_at)} ago",
        "Status": _status(container, now),
        "State": str(container.status),
        "Names": container.name,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(container.labels.items())),
    }


def _status(container: Container, now: float) -> str:
    """`Up 5 minutes`, `Exited (0) 3 hours ago`, `Created`, in docker's words."""
    status = str(container.status)
    if status in _ALIVE:
        up = f"Up {ago(now - started_at(container))}"
        return f"{up} (Paused)" if status == "paused" else up
    record = container.exit
    if status == "exited" and record is not None:
        code = record.returncode if record.returncode >= 0 else 128 - record.returncode
        text = str(code) if record.known else "?"
        return f"Exited ({text}) {ago(now - record.ended_at)} ago"
    return status.capitalize()


def started_at(container: Container) -> float:
    """When it was started, in seconds since the epoch."""
    live = container.live()
    return container.created_at if live is None else live.started_usec / 1e6


def _read_filters(texts: list[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in _FILTERS:
            hint = f"use KEY=VALUE with one of {', '.join(_FILTERS)}"
            raise UsageError(f"{text!r} is not known", field="--filter", hint=hint)
        filters.setdefault(key, []).append(value)
    return filters


def matches(container: Container, filters: dict[str, list[str]]) -> bool:
    """Whether it has every label asked for and, of each other filter, one of the values."""
    labels = container.labels
    for text in filters.get("label", ()):
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    record = container.exit
    code = None if record is None else record.exit_code
    tests = {
        "name": lambda value: value in container.name,
        "id": lambda value: container.id.startswith(value),
        "status": lambda value: container.status == value,
        "exited": lambda value: code is not None and value == str(code),
        "ancestor": lambda value: container.image == value,
    }
    return all(any(map(test, filters[key])) for key, test in tests.items() if key in filters)


def _within(
    containers: list[Container], filters: dict[str, list[str]], everything: list[Container]
) -> list[Container]:
    """Those made before and since the containers that these two filters name."""
    for key in ("before", "since"):
        for reference in filters.get(key, ()):
            known = [c for c in everything if c.name == reference or c.id.startswith(reference)]
            if not known:
                raise UsageError(f"no container {reference!r}", field=f"--filter {key}")
            limit = known[0].created_at
            containers = [
                one
                for one in containers
                if (one.created_at < limit if key == "before" else one.created_at > limit)
            ]
    return containers


COMMANDS = {
    "ps": Command(
        "list containers",
        "",
        _ps,
        (
            Option(("-a", "--all"), "also those that do not run"),
            Option(("-q", "--quiet"), "ids only"),
            Option(("-f", "--filter"), "only those with KEY=VALUE", "KEY=VALUE", many=True),
            Option(("-n", "--last"), "the last N made, whatever their state", "N"),
            Option(("-l", "--latest"), "the last one made, whatever its state"),
            Option(("--no-trunc",), "cut nothing short"),
            FORMAT,
        ),
    ),
}
