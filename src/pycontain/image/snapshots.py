"""A container's writable view of an image: an overlay mount over the unpacked layers.

Nothing is mounted here. `prepare` makes the directories and says what to mount; who isolates the
container turns that into a detached mount. Source: Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pycontain.errors import InvalidInput, Unsupported
from pycontain.oci import Digest, Mount

from .removal import remove_path

if TYPE_CHECKING:
    from . import Image

MAX_LAYERS = 500
_WORK, _EMPTY = "work.", "empty."
_OPTION_PAGE_BYTES = 4000
# What a layer can't say by itself: see "metacopy" and "redirect_dir" in overlayfs.rst on
# untrusted layers. index=off: a lower directory may be shared by many containers.
_SAFE = ("index=off", "metacopy=off", "redirect_dir=nofollow")


def prepare(
    container_dir: str, image: Image, *, readonly: bool = False, volatile: bool = False
) -> Mount:
    """Returns the mount for "/"; `container_dir` has the directories that it needs.

    What a container of this directory wrote before is still there.

    Args:
        container_dir: made if missing, for the owner only.
        readonly: no upper layer; the container can't write to its root.
        volatile: never sync what the container writes, for containers that are thrown away.

    Raises:
        Unsupported: more layers than the kernel stacks, or a colon in a path on Linux < 6.5.
    """
    try:
        os.mkdir(container_dir, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(container_dir, 0o700, exist_ok=True)
    if readonly and image.layers:  # overlayfs wants it below one layer; else it is a name
        with suppress(FileExistsError):
            os.mkdir(f"{container_dir}/{_named(_EMPTY, image)}", 0o755)
    elif not readonly and image.layers:
        _make_upper(
            f"{container_dir}/upper", f"{container_dir}/{_named(_WORK, image)}", image.layers[-1]
        )
    return describe(container_dir, image, readonly=readonly, volatile=volatile)


def describe(
    container_dir: str, image: Image, *, readonly: bool = False, volatile: bool = False
) -> Mount:
    """Returns what `prepare` returns, and makes nothing."""
    if image.rootfs_dir is not None:
        return Mount("/", "bind", image.rootfs_dir, ("rbind", "ro") if readonly else ("rbind",))
    lower = [*reversed(image.layers)]
    if not lower:
        raise InvalidInput(f"image {image.id} has no layers")
    if readonly and len(lower) == 1:
        # overlayfs wants two layers if none is writable
        lower.append(f"{container_dir}/{_named(_EMPTY, image)}")
    options = lower_options(lower)
    if not readonly:
        work = f"{container_dir}/{_named(_WORK, image)}"
        options += [f"upperdir={container_dir}/upper", f"workdir={work}"]
        if volatile:
            options.append("volatile")
    options += _SAFE
    if os.geteuid():
        options.append("userxattr")
    return Mount("/", "overlay", "overlay", (*(("ro",) if readonly else ()), *options))


def view(image: Image) -> Mount:
    """Returns a read-only mount of the image alone, which needs no directory of a container."""
    if image.rootfs_dir is not None or len(image.layers) == 1:
        source = image.rootfs_dir or image.layers[0]
        return Mount("/", "bind", source, ("rbind", "ro", "nosuid", "nodev"))
    return describe("", image, readonly=True)


def lower_options(lower: list[str], release: tuple[int, int] | None = None) -> list[str]:
    """Returns the options that stack `lower`, the topmost first; `release` is the kernel's.

    Before Linux 6.8 all of them go into one option, which a page limits and colons break.
    """
    if len(lower) > MAX_LAYERS:
        raise Unsupported(f"an image of {len(lower)} layers", needs=f"at most {MAX_LAYERS} layers")
    if (release or _kernel_release()) >= (6, 8):
        return [f"lowerdir+={path}" for path in lower]
    value = ":".join(path.replace("\\", "\\\\").replace(":", "\\:") for path in lower)
    if len(value.encode()) > _OPTION_PAGE_BYTES:
        raise Unsupported(f"an image of {len(lower)} layers", needs="Linux 6.8 (lowerdir+)")
    return [f"lowerdir={value}"]


def remove(container_dir: str) -> None:
    """`container_dir` is gone with all a container made in it, however hostile; idempotent.

    Raises:
        KernelError: e.g. EBUSY or EXDEV, something is still mounted inside.
    """
    # A container that wrote nothing leaves four empty directories: the common case by far, and a
    # walk that expects hostility costs twice as much.
    try:
        for name in os.listdir(container_dir):
            if name.startswith(_WORK):
                with suppress(FileNotFoundError):
                    os.rmdir(f"{container_dir}/{name}/work")
            os.rmdir(f"{container_dir}/{name}")
        os.rmdir(container_dir)
    except FileNotFoundError:
        return
    except OSError:
        remove_path(container_dir)


def image_of(container_dir: str) -> Digest | None:
    """Returns the image that the container's layer was prepared from; None if it has none.

    It stands in the name of a directory, because a file of its own costs more than the rest.
    """
    with suppress(OSError):
        for name in os.listdir(container_dir):
            kind, _, digest = name.partition(".")
            if kind + "." in (_WORK, _EMPTY):
                return Digest(digest.replace(".", ":"))
    return None


def _named(kind: str, image: Image) -> str:
    return kind + image.id.replace(":", ".")


def _make_upper(upper: str, work: str, top: str) -> None:
    """The upper directory exists with the attributes of the image's root, which it replaces."""
    try:
        os.mkdir(work, 0o700)
    except FileExistsError:
        with suppress(FileNotFoundError, NotADirectoryError):
            # The kernel leaves it after a volatile mount; who prepares again accepts the loss.
            os.stat(f"{work}/work/incompat/volatile")
            remove_path(f"{work}/work/incompat")
    try:
        os.mkdir(upper, 0o700)
    except FileExistsError:
        return
    info = os.stat(top)
    if os.geteuid() == 0 and (info.st_uid or info.st_gid):
        os.chown(upper, info.st_uid, info.st_gid)
    os.chmod(upper, stat.S_IMODE(info.st_mode))


def _kernel_release() -> tuple[int, int]:
    numbers = os.uname().release.split("-")[0].split(".")
    return int(numbers[0]), int(numbers[1].rstrip("+~") or 0)
