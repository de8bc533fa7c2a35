"""The examples do what they say, run as a user would run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import userland

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        input=stdin, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def image(tmp_path: Path) -> str:
    return userland.make(tmp_path / "root")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_help_and_size(path: Path) -> None:
    """Each explains itself and can be read at a glance."""
    assert "usage:" in example(path.name, "--help").stdout
    assert len(path.read_text().splitlines()) <= 120


def test_sandbox_shows_its_walls() -> None:
    """Without an image the sandbox shows what code in it could see."""
    ran = example("sandbox.py")
    assert ran.returncode == 0, ran.stderr
    assert "uid             65534" in ran.stdout
    assert "exit code 0" in ran.stderr


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [
        ("print(6 * 7)", "42\n", "exit code 0"),
        ("import sys; sys.exit(3)", "", "exit code 3"),
        ("while True: pass", "", "took too long"),
        ("x = bytearray(1 << 30)\nx[:] = b'x' * (1 << 30)", "", "too much memory"),
        ("import os\nos.kill(os.getpid(), 11)", "", ""),
        ("try: open('/x', 'w')\nexcept OSError as e: print(e.errno)", "30\n", "exit code 0"),
        ("import socket\ntry: socket.create_connection(('1.1.1.1', 53), 1)\n"
         "except OSError as e: print(e.errno)", "101\n", "exit code 0"),
    ],
)  # fmt: skip
def test_sandbox(image: str, code: str, said: str, verdict: str) -> None:
    """Untrusted Python: what it prints, and what it can't do."""
    if not Path("/usr/bin/python3").exists():
        pytest.skip("needs program:python3 below /usr")
    ran = example("sandbox.py", "--image", image, "--volume", userland.USR, "--timeout", "2", "-",
                  stdin=code)  # fmt: skip
    assert ran.stdout == said, ran.stderr
    assert verdict in ran.stderr


def test_ci_runner(image: str, tmp_path: Path) -> None:
    """Steps run in order, share the workspace and the cache, and the first failure ends it."""
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text(
        f"""
        image = "{image}"
        [[steps]]
        name = "build"
        script = "echo built > product; echo cached > /cache/c; echo building"
        volumes = ["{userland.USR}"]
        [[steps]]
        name = "test"
        command = ["sh", "-c", "cat product /cache/c; echo bad >&2; exit 7"]
        volumes = ["{userland.USR}"]
        memory = "64M"
        [[steps]]
        name = "never"
        """
    )
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    ran = example("ci_runner.py", str(pipeline), "--workspace", str(workspace),
                  "--cache", str(tmp_path / "cache"))  # fmt: skip
    assert ran.returncode == 7, ran.stderr
    lines = ran.stdout.splitlines()
    for line in ("[build] building", "[test] built", "[test] cached", "[test] bad"):
        assert line in lines
    assert "never" not in ran.stdout
    assert (workspace / "product").read_text() == "built\n"
    assert (tmp_path / "cache/c").read_text() == "cached\n"


def test_ci_runner_timeout(tmp_path: Path) -> None:
    """A step that takes too long is killed, on the embedded image."""
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text('[[steps]]\ncommand = ["--sleep", "1000"]\ntimeout = 0.2\n')
    ran = example("ci_runner.py", str(pipeline), "--workspace", str(tmp_path))
    assert "timed out" in ran.stdout
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        (["--alloc", "1M"], "OK"),
        (["--alloc", "2M"], "WA"),
        (["--alloc", "100M"], "MLE"),
        (["--burn", "10"], "TLE"),
        (["--sleep", "1000"], "TLE"),
        (["--signal", "11"], "RE"),
        (["--exit", "3"], "RE"),
    ],
)
def test_judge(tmp_path: Path, command: list[str], verdict: str) -> None:
    """Each verdict, from programs that deserve it."""
    (tmp_path / "a.in").write_text("")
    (tmp_path / "a.out").write_text("allocated 1048576 bytes\n")
    ran = example("judge.py", str(tmp_path), "--time", "0.3", "--memory", "32M", "--", *command)
    assert f"{verdict}=1" in ran.stdout.splitlines()[-1], ran.stderr
    assert ran.returncode == (0 if verdict == "OK" else 1)


def test_worker_pool() -> None:
    """Every line is one container; results carry what it wrote and how it ended."""
    jobs = [f"--alloc 1M --exit {n}" for n in range(30)] + ["--sleep 1000"]
    ran = example("worker_pool.py", "--workers", "10", "--timeout", "1", stdin="\n".join(jobs))
    assert ran.returncode == 1, ran.stderr
    reports = {report["job"]: report for report in map(json.loads, ran.stdout.splitlines())}
    assert len(reports) == 31
    assert all(reports[n + 1]["exit_code"] == n for n in range(30))
    assert reports[1]["stdout"] == "allocated 1048576 bytes\n"
    assert reports[31]["timed_out"]
