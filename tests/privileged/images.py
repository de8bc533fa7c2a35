"""Real images for tests, made once per machine and kept in a cache.

``PYCONTAIN_TEST_CACHE`` names the cache (default /var/cache/pycontain-test); a VM gets it as it is
and needs no tool then. Each function skips the test if the cache lacks the image and this machine
lacks what makes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = "bookworm"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cache() -> Path:
    """The directory of cached images."""
    return Path(os.environ.get("PYCONTAIN_TEST_CACHE", "/var/cache/pycontain-test"))


def debian_rootfs() -> Path:
    """A tar of a Debian root file system with python3, about 190 MB."""

    def make(path: Path) -> None:
        run(
            "mmdebstrap",
            "--variant=minbase",
            "--include=python3-minimal",
            "--format=tar",
            SUITE,
            path,
        )

    return cached("debian-rootfs.tar", make, "mmdebstrap")


def debian_oci() -> Path:
    """An OCI layout: tag ``12`` is Debian in one gzip layer, ``layers`` has one more on top.

    The second layer has whiteouts of files and directories, a directory made anew, a file where a
    directory was, hard links, extended attributes, a FIFO and a device.
    """

    def make(path: Path) -> None:
        rootfs = debian_rootfs()
        work = path.with_name(path.name + ".work")
        work.mkdir()
        try:
            run("umoci", "init", "--layout", path)
            run("umoci", "new", "--image", f"{path}:12")
            run("umoci", "unpack", "--image", f"{path}:12", work / "a")
            run("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", rootfs,
                "-C", work / "a/rootfs")  # fmt: skip
            run("umoci", "repack", "--image", f"{path}:12", work / "a")
            run("umoci", "config", "--image", f"{path}:12",
                "--config.cmd", "/bin/sh", "--config.env", PATH)  # fmt: skip
            run("umoci", "unpack", "--image", f"{path}:12", work / "b")
            change(work / "b/rootfs")
            run("umoci", "repack", "--image", f"{path}:layers", work / "b")
            run("umoci", "gc", "--layout", path)
        finally:
            shutil.rmtree(work)

    return cached("debian-layers.oci", make, "umoci")


def docker_archive() -> Path:
    """The image ``layers`` of `debian_oci` as ``docker save`` writes it, called debian:layers."""

    def make(path: Path) -> None:
        source = f"oci:{debian_oci()}:layers"
        run("skopeo", "copy", "--insecure-policy", source, f"docker-archive:{path}:debian:layers")

    return cached("debian-layers.docker.tar", make, "skopeo")


def change(root: Path) -> None:
    """What the second layer does to the first."""
    shutil.rmtree(root / "usr/share/doc")
    shutil.rmtree(root / "usr/share/common-licenses")
    (root / "usr/share/common-licenses").mkdir()
    (root / "usr/share/common-licenses/new").write_text("new")
    shutil.rmtree(root / "opt")
    (root / "opt").write_text("a file now")
    (root / "etc/motd").unlink(missing_ok=True)
    (root / "etc/issue").unlink()
    (root / "srv/file").write_text("linked")
    os.link(root / "srv/file", root / "srv/hard")
    (root / "srv/soft").symlink_to("file")
    os.setxattr(root / "srv/file", "user.note", b"\0binary\xff")
    os.setxattr(root / "srv/soft", "trusted.note", b"x", follow_symlinks=False)
    os.chown(root / "srv/file", 1234, 5678)
    (root / "srv/file").chmod(0o4750)
    os.utime(root / "srv/file", ns=(1, 1_234_567_890_123_456_789))
    os.mkfifo(root / "srv/fifo")
    os.mknod(root / "srv/null", 0o020666, os.makedev(1, 3))
    with (root / "srv/sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")


def cached(name: str, make: Callable[[Path], None], *programs: str) -> Path:
    """Return the cached file `name`; `make` makes it, once even if several tests want it."""
    path = cache() / name
    if path.exists():
        return path
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs program:{program} (or {path})")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            temporary = path.with_name(f"{name}.{os.getpid()}.tmp")
            try:
                make(temporary)
                temporary.rename(path)
            finally:
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink(missing_ok=True)
    return path


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
