"""Removing what has ended, and what a crash left without anybody to remove it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from pycontain.errors import ContainerNotFound, PycontainError, WrongState
from pycontain.isolation import cgroups
from pycontain.runtime import blueprint as blueprints
from pycontain.runtime.container import remove_traces
from pycontain.runtime.host import Host
from pycontain.runtime.liveness import is_alive
from pycontain.runtime.state import Status
from pycontain.values import frozen

__all__ = ["PruneReport", "prune"]

_YOUNG_SEC = 60.0


@frozen
class PruneReport:
    """What `prune` removed: container ids, and what a crash had left without a container."""

    containers: tuple[str, ...]
    leftovers: tuple[str, ...]
    freed_bytes: int


def prune(host: Host, *, exited: bool = True) -> PruneReport:
    """No ended container is left, nor anything that a crash left of one.

    Args: exited: False keeps containers that ended by themselves, unless marked auto_remove.
    """
    before = host.data_bytes()
    removed = [
        entry.id for entry in host.states.ls() if _prune_one(host, entry.id, entry.document, exited)
    ]
    leftovers = _prune_leftovers(host)
    return PruneReport(tuple(removed), leftovers, max(0, before - host.data_bytes()))


def _prune_one(host: Host, container_id: str, document: Any, exited: bool) -> bool:
    cgroup = f"{host.cgroup_parent(start=False)}/{container_id}"
    try:
        blueprint = blueprints.decode(document) if document is not None else None
        status = host.states.status(container_id)
    except (ContainerNotFound, WrongState):
        blueprint, status = None, Status.UNKNOWN
    if status in (Status.RUNNING, Status.PAUSED):
        return False
    if blueprint is None and _is_young(host.states.path(container_id)):
        return False  # not damaged: being made, or being removed, at this moment
    if blueprint is not None:
        # A program that lives removes its own; it may be starting it, or removing it, just now.
        if not blueprint.survive and is_alive(blueprint.owner_pid, blueprint.owner_ticks):
            return False
        if status == Status.CREATED and blueprint.survive:
            return False
        kept = blueprint.survive and not blueprint.auto_remove
        if status == Status.EXITED and not exited and kept:
            return False
        cgroup = blueprint.cgroup
    remove_traces(host, container_id, cgroup)
    return True


def _is_young(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < _YOUNG_SEC
    except FileNotFoundError:
        return True


def _prune_leftovers(host: Host) -> tuple[str, ...]:
    """Cgroups and data directories of ours whose container does not exist."""
    found = []
    layout, parent = host.layout(), host.cgroup_parent(start=False)
    # Looked at before the living are: whatever is made in between is nobody's leftover.
    groups, data = cgroups.children(layout, parent), host.data_ids()
    alive = set(host.states.ids())
    for name in groups:
        if name not in alive and _is_id(name):
            with suppress(PycontainError):
                group = cgroups.Cgroup.open(layout, f"{parent}/{name}")
                group.kill()
                group.remove()
                found.append(f"cgroup {parent}/{name}")
    for name in data:
        if name not in alive and _is_id(name):
            host.remove_data(name)
            found.append(f"data {name}")
    if not alive:
        cgroups.remove_parent(layout, parent)
    return tuple(found)


def _is_id(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)
