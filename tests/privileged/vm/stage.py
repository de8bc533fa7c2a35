"""The second disk of the VM: pycontain as its wheel installs it, its Python packages, the tests.

Everything is made on the host with a Python of the guest's version (3.11), so that the guest needs
neither a network nor a compiler.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import image

REPOSITORY = Path(__file__).resolve().parents[3]
GUEST_PYTHON = (3, 11)  # Debian 12's
WHEEL_SOURCES = ("src", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE")
TEST_SOURCES = ("tests", "examples", "bench", "build/bench", "pyproject.toml", "tox.ini")


def stage_disk(work: Path, command: list[str]) -> Path:
    """Return the staged disk, an ext4 file under ``work``. Raises what `stage_tree` does."""
    tree = work / "tree"
    stage_tree(tree, command)
    disk_path = work / "stage.ext4"
    used_bytes = sum(p.lstat().st_size + 4096 for p in tree.rglob("*"))
    image.make_disk(tree, disk_path, "pycontain", 2 * used_bytes + (1 << 30))
    return disk_path


def stage_tree(tree: Path, command: list[str]) -> None:
    """Fill the directory that the guest sees as /opt/pycontain, where it runs ``command``.

    Raises:
        SystemExit: this Python is not the guest's version, so its wheels would not load there.
        subprocess.CalledProcessError: the wheel did not build, or a package was not found.
    """
    if sys.version_info[:2] != GUEST_PYTHON:
        sys.exit("vm: run this with Python 3.11, the version of Debian 12: .venv/bin/python")
    site = tree / "site"
    shutil.copytree(_dependencies(), site, symlinks=True)
    _install_pycontain(site)
    for name in TEST_SOURCES:
        _copy(REPOSITORY / name, tree / name)
    shutil.copyfile(Path(__file__).with_name("guest.sh"), tree / "guest.sh")
    (tree / "command").write_text("exec " + shlex.join(command) + "\n")
    images = Path(os.environ.get("PYCONTAIN_TEST_CACHE", "/var/cache/pycontain-test"))
    if images.is_dir():
        shutil.copytree(images, tree / "images", symlinks=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
        shutil.copytree(source, target, symlinks=True, ignore=ignored)
    elif source.exists():
        shutil.copyfile(source, target)


def _requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return [*project.get("dependencies", []), *extras.get("test", []), "pytest"]


def _dependencies() -> Path:
    """Return a directory with the packages that pycontain and its tests import, cached."""
    requirements = _requirements()
    name = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:16]
    target = image.cache_dir() / f"site-{name}"
    if not target.is_dir():
        image.cache_dir().mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        _pip("--target", str(partial), *requirements)
        partial.rename(target)
    return target


def _install_pycontain(site: Path) -> None:
    """Install pycontain into ``site`` from a copy, so that no build runs in the repository."""
    with tempfile.TemporaryDirectory(prefix="pycontain-wheel-") as directory:
        source = Path(directory)
        for name in WHEEL_SOURCES:
            _copy(REPOSITORY / name, source / name)
        for built in source.rglob("*.so"):
            built.unlink()
        _pip("--no-deps", "--upgrade", "--target", str(site), str(source))
    for script in (site / "bin").glob("*"):
        lines = script.read_text().splitlines(keepends=True)
        if lines and lines[0].startswith("#!"):
            script.write_text("".join(["#!/usr/bin/python3\n", *lines[1:]]))


def _pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-script-location"]
    subprocess.run([*command, *args], check=True, stdin=subprocess.DEVNULL)
