"""Writable layers that nobody wrote to, kept for the next container of the same image.

Making and removing the four directories of a layer is a third of a short container's time on a
journalling file system, and most containers that are run to their end write nothing to it. Such a
layer is as good as new, which is checked and not assumed: nothing in it, and its root as it was
made (owner, mode, size, flags, extended attributes). Containers of one program share no more by it
than the number of an inode.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pycontain.errors import PycontainError

from . import snapshots

if TYPE_CHECKING:
    from . import Image

__all__ = ["Spares", "sweep"]

_PREFIX = ".spare-"
_MOST = 8
_FS_IOC_GETFLAGS = 0x80086601  # include/uapi/linux/fs.h, _IOR('f', 1, long)
_State = tuple[int, ...]


class Spares:
    """The spare layers of one program. Threads share it: a list's append and pop are atomic.

    The mutable state is `_free` (image id -> directories), `_new` (image id -> what a new root
    looks like) and the counters. `owner` are this program's pid and start tick, by which `sweep`
    knows what a dead program left.
    """

    def __init__(self, containers_dir: str, owner: Callable[[], tuple[int, int]]) -> None:
        self._dir = containers_dir
        self._owner = owner
        self._free: dict[str, list[str]] = {}
        self._new: dict[str, _State] = {}
        self._made = self._numbered = 0

    def prepare(self, container_dir: str, image: Image) -> None:
        """`container_dir` has the directories that the image's mount needs; see snapshots."""
        self._made += 1
        free = self._free.get(image.id)
        while free:
            try:
                os.rename(free.pop(), container_dir)
                return
            except (IndexError, FileNotFoundError):  # another thread's, or pruned, or forked
                continue
        snapshots.prepare(container_dir, image)
        if image.id not in self._new:
            with suppress(OSError):
                self._new[image.id] = _state(f"{container_dir}/upper")

    def remove(self, container_dir: str) -> None:
        """`container_dir` is gone, or has become a spare."""
        if not self._keep(container_dir):
            snapshots.remove(container_dir)

    def _keep(self, container_dir: str) -> bool:
        image_id = snapshots.image_of(container_dir)
        if self._made < 2 or image_id is None:  # a program of one container has no use for it
            return False
        free = self._free.setdefault(image_id, [])
        try:
            if len(free) >= _MOST or len(os.listdir(container_dir)) != 2:  # a log, say
                return False
            upper = f"{container_dir}/upper"
            if _state(upper) != self._new.get(image_id):
                return False
            os.utime(upper, (0, 0))  # not even a time of day goes from one container to the next
            pid, ticks = self._owner()
            self._numbered += 1
            spare = f"{self._dir}/{_PREFIX}{pid}-{ticks}-{self._numbered}"
            os.rename(container_dir, spare)
        except OSError:
            return False
        free.append(spare)
        return True

    def close(self) -> None:
        """No spare is left."""
        for free in self._free.values():
            while free:
                with suppress(PycontainError, IndexError):
                    snapshots.remove(free.pop())


def _state(upper: str) -> _State:
    """What tells an untouched root of a layer from any other; (-1,) for one with content."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.listdir(fd):
            return (-1,)
        if any(not name.startswith("trusted.overlay.") for name in os.listxattr(fd)):
            return (-1,)
        info = os.fstat(fd)
        flags = 0
        with suppress(OSError):  # a file system without flags
            flags = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0]
        return (info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_nlink, flags)
    finally:
        os.close(fd)


def sweep(containers_dir: str, is_alive: Callable[[int, int], bool]) -> tuple[str, ...]:
    """Spares of programs that are dead are gone; their paths."""
    found = []
    with suppress(FileNotFoundError):
        for name in os.listdir(containers_dir):
            pid, _, rest = name.removeprefix(_PREFIX).partition("-")
            ticks = rest.partition("-")[0]
            if not name.startswith(_PREFIX) or not (pid + ticks).isdigit():
                continue
            if not is_alive(int(pid), int(ticks)):
                snapshots.remove(f"{containers_dir}/{name}")
                found.append(f"{containers_dir}/{name}")
    return tuple(found)
