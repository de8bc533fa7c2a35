"""Builds the CFFI extension and the static programs (see src/pycontain/_native/build.py).

The rest of the package's definition is in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

BUILD = Path("src/pycontain/_native/build.py")


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pycontain_native_build", BUILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """Builds monitor, init and hello first: they are package data, which is copied then."""

    def run(self) -> None:
        build = _load_build()
        build.build_programs(BUILD.parent / "bin")
        build.write_stub()
        super().run()


class BuildExt(build_ext):
    """The same for `pip install -e`, which has no use for build_py."""

    def run(self) -> None:
        _load_build().build_programs(BUILD.parent / "bin")
        super().run()


setup(
    cffi_modules=[f"{BUILD}:ffibuilder"],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
)
