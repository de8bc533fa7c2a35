"""A root file system with a shell for tests: the host's own programs, read-only, under /usr."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycontain import Engine, Result

USR = "/usr:/usr:ro"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home:/bin/sh\n"


def make(path: Path) -> str:
    """Make the root below `path` and return the image argument that names it."""
    for name in ("usr", "proc", "sys", "dev", "tmp", "etc", "root", "home", "data"):
        (path / name).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.exists(f"/usr/{name}"):
            (path / name).symlink_to(f"usr/{name}")
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text("root:x:0:\nstaff:x:50:ann\nann:x:1000:\n")
    return f"rootfs:{path}"


def shell(engine: Engine, image: str) -> Callable[..., Result]:
    """Return a function that runs a shell script in `image` and captures what it says."""

    def run(script: str, **words: Any) -> Result:
        volumes = [USR, *words.pop("volumes", ())]
        words = {"capture_output": True, "text": True, **words}
        return engine.run(image, ["sh", "-c", script], volumes=volumes, **words)

    return run
