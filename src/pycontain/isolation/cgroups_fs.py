"""Single operations on one cgroup directory, the same on v1 and v2, and on a fake tree in tests.

Errors are told in the caller's words: which option made us write what into which file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from pycontain.errors import InvalidInput, InvalidSpec, KernelError, PycontainError, Unsupported
from pycontain.isolation.cgroups_layout import Layout

_REFUSED = frozenset(
    (errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.EOVERFLOW, errno.E2BIG, errno.ENOSPC)
)
DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_READ_BYTES = 65_536
_BUSY_WAIT_FIRST_SEC = 0.0005
_BUSY_WAIT_LAST_SEC = 0.02


@contextlib.contextmanager
def unless_gone() -> Iterator[None]:
    """Nothing happens to a cgroup that is gone: ENOENT, or ENODEV if it was removed once open."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def write(directory: str, file: str, text: str) -> None:
    """`text` is in `directory`/`file`, in one write, as the kernel wants it."""
    fd = os.open(f"{directory}/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(directory: str, file: str) -> str:
    """The text of a cgroup file."""
    fd = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("ascii", "replace")


def refusal(error: OSError, path: str, text: str, field: str) -> PycontainError:
    """The exception for a failed write of `text` to `path`, which option `field` asked for."""
    code = error.errno or errno.EIO
    if code in _REFUSED:
        return InvalidSpec(
            f"the kernel refuses {text!r} for {path} ({os.strerror(code)})", field=field
        )
    if code in (errno.ENOENT, errno.EOPNOTSUPP):
        return Unsupported(field, needs=f"a kernel with {os.path.basename(path)}")
    hint = None
    if code in DENIED:
        hint = "cgroups must be delegated to this user, or run as root"
    elif code == errno.EBUSY:
        hint = "the cgroup uses more than that now, or has both processes and children"
    return KernelError(code, f'write("{path}", "{text}")', field=field, hint=hint)


def subdirectories(directory: str) -> list[str]:
    """Names of the child cgroups; none if the directory is gone."""
    try:
        # kernfs counts subdirectories in the link count: most cgroups are leaves, and a scan of
        # the 60 files of a cgroup costs ten times this stat.
        if os.stat(directory).st_nlink == 2:
            return []
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def pids(directory: str) -> list[int]:
    """Every process in the cgroup and below; those of foreign pid namespaces are left out."""
    try:
        found = [int(word) for word in read(directory, "cgroup.procs").split()]
    except OSError as error:
        # EOPNOTSUPP: a threaded cgroup; its processes are listed by the domain above it.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        found = []
    for name in subdirectories(directory):
        found += pids(f"{directory}/{name}")
    return [pid for pid in found if pid]


def remove_tree(directory: str, deadline: float) -> None:
    """The cgroup and all below it are gone; waits while the kernel lets go of dying processes.

    Args:
        deadline: `time.monotonic()` after which a busy cgroup is an error.

    Raises:
        KernelError: EBUSY, there are still processes in it.
    """
    wait_sec = _BUSY_WAIT_FIRST_SEC
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise KernelError(error.errno or errno.EIO, f'rmdir("{directory}")') from error
        children = subdirectories(directory)
        for name in children:
            remove_tree(f"{directory}/{name}", deadline)
        if children:
            continue
        if time.monotonic() >= deadline:
            hint = "processes are left in it: kill() first"
            raise KernelError(errno.EBUSY, f'rmdir("{directory}")', hint=hint)
        time.sleep(wait_sec)
        wait_sec = min(wait_sec * 2, _BUSY_WAIT_LAST_SEC)


def children(layout: Layout, parent: str) -> list[str]:
    """Names of the cgroups directly below `parent`, in whatever hierarchy: for pruning."""
    roots = [layout.v2_root] if layout.v2_root else []
    roots += [mount_point for _, mount_point in layout.v1]
    found = {name for root in roots for name in subdirectories(f"{root}/{parent}")}
    return sorted(found)


def is_unit(name: str) -> bool:
    """A cgroup of this name is systemd's to make and to remove."""
    return name.endswith((".slice", ".scope", ".service"))


def remove_parent(layout: Layout, parent: str) -> None:
    """The directories of `parent` are gone where nothing was below them; others stay.

    A systemd unit stays as well: it ends by itself when its last process has ended.
    """
    if is_unit(parent):
        return
    roots = [layout.v2_root] if layout.v2_root else []
    roots += [mount_point for _, mount_point in layout.v1]
    for root in dict.fromkeys(roots):
        with contextlib.suppress(OSError):
            os.rmdir(f"{root}/{parent}")


def checked_name(name: str) -> str:
    """`name` without slashes around it; it can't leave the tree.

    Raises:
        InvalidInput: it could, or is no path.
    """
    parts = name.strip("/").split("/")
    if any(part in ("", ".", "..") or len(part) > 255 for part in parts) or "\0" in name:
        raise InvalidInput(f"{name!r} is no path of a cgroup", field="cgroup_parent")
    return "/".join(parts)
