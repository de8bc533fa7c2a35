"""Verbs about containers and images that exist, against the fake engine."""

from __future__ import annotations

import io
import json
import os
import time
from types import SimpleNamespace

import pytest
from conftest import Cli
from fake_engine import FakeEngine, ended


@pytest.fixture
def three(engine: FakeEngine) -> FakeEngine:
    """A running, a paused and an ended container."""
    now = time.time()
    engine.add("web", created_at=now - 7200, started_at=now - 120, labels={"a": "1", "b": "x"})
    engine.add("db", created_at=now - 60, started_at=now - 5, status="paused")
    engine.add(
        "old",
        created_at=now - 86400 * 3,
        status="exited",
        image="alpine",
        exit=ended(None, 9, ended_at=now - 3600),
    )
    return engine


def test_ps_has_dockers_columns(cli: Cli, three: FakeEngine) -> None:
    """Only what runs, newest first; -a shows all."""
    lines = cli("ps").out.splitlines()
    assert lines[0].split("   ")[0] == "CONTAINER ID"
    assert [line.split()[-1] for line in lines] == ["NAMES", "db", "web"]
    assert '"sleep 1000"' in lines[2]
    assert "2 hours ago" in lines[2]
    assert "Up 2 minutes" in lines[2]
    assert "Up 5 seconds (Paused)" in lines[1]
    assert "Exited (137) About an hour ago" in cli("ps", "-a").out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("-f", "name=we"), ["web"]),
        (("-f", "label=a", "-f", "label=b=x"), ["web"]),
        (("-f", "label=a=2"), []),
        (("-f", "status=exited"), ["old"]),
        (("-f", "status=exited", "-f", "status=paused"), ["db", "old"]),
        (("-a", "-f", "ancestor=alpine"), ["old"]),
        (("-a", "-f", "since=old", "-f", "before=db"), ["web"]),
        (("-n", "1"), ["db"]),
        (("-l",), ["db"]),
        (("-f", "id=0101"), ["web"]),
    ],
)
def test_ps_filters(cli: Cli, three: FakeEngine, words: tuple[str, ...], names: list[str]) -> None:
    """Docker's filters, status ones also among what does not run."""
    assert cli("ps", *words, "--format", "{{.Names}}").out.split() == names


def test_ps_hides_what_is_to_be_removed(cli: Cli, engine: FakeEngine) -> None:
    """An ended `run -d --rm` is gone for the user."""
    engine.add("gone", status="exited", exit=ended(), auto_remove=True)
    assert cli("ps", "-aq").out == ""


def test_ps_json_and_quiet(cli: Cli, three: FakeEngine) -> None:
    """JSON lines under docker's keys; -q is ids, whole with --no-trunc."""
    rows = [json.loads(line) for line in cli("ps", "--format", "json").out.splitlines()]
    assert [row["Names"] for row in rows] == ["db", "web"]
    assert rows[1]["Labels"] == "a=1,b=x"
    assert [len(line) for line in cli("ps", "-q").out.split()] == [12, 12]
    assert [len(line) for line in cli("ps", "-q", "--no-trunc").out.split()] == [64, 64]


def test_an_unknown_filter_is_refused(cli: Cli) -> None:
    """With the ones that exist."""
    ran = cli("ps", "-f", "colour=red")
    assert ran.code == 125
    assert "--filter: 'colour=red' is not known" in ran.err


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("stop", "web"), ("stop", None)),
        (("stop", "-t", "3", "web"), ("stop", 3.0)),
        (("kill", "web"), ("kill",)),
        (("kill", "-s", "SIGUSR1", "web"), ("send_signal", 10)),
        (("kill", "-s", "hup", "web"), ("send_signal", 1)),
        (("kill", "--signal=15", "web"), ("send_signal", 15)),
        (("kill", "-s", "RTMIN+3", "web"), ("send_signal", 37)),
        (("pause", "web"), ("pause",)),
        (("unpause", "web"), ("resume",)),
        (("rm", "-f", "web"), ("remove", True)),
        (("update", "-m", "1g", "web"), ("update", {"memory": "1g"})),
        (("update", "--pids-limit", "5", "web"), ("update", {"pids": 5})),
    ],
)
def test_verbs_act_and_echo(
    cli: Cli, three: FakeEngine, words: tuple[str, ...], call: tuple[object, ...]
) -> None:
    """Each verb does its one thing and prints the name that it was given."""
    web = three.get("web")
    assert cli(*words) == (0, "web\n", "")
    assert web.calls[-1] == call


def test_one_failure_does_not_stop_the_others(cli: Cli, three: FakeEngine) -> None:
    """The good ones are done and echoed; the bad one is on stderr; the code is 125."""
    ran = cli("pause", "nope", "web")
    assert (ran.code, ran.out) == (125, "web\n")
    assert ran.err == "pycontain: nope: no container 'nope'\n"
    ran = cli("rm", "web")
    assert ran.err == "pycontain: web: container web is running (stop it first)\n"


def test_bad_signals_and_empty_updates_are_refused(cli: Cli, three: FakeEngine) -> None:
    """Before any container is touched."""
    assert "--signal: 'NOPE' is not a signal" in cli("kill", "-s", "NOPE", "web").err
    assert "--signal: '99' is not a signal" in cli("kill", "-s", "99", "web").err
    assert "update: no limit to change" in cli("update", "web").err
    assert three.calls == []


def test_restart_stops_only_what_runs(cli: Cli, three: FakeEngine) -> None:
    """Then starts."""
    web, old = three.get("web"), three.get("old")
    assert cli("restart", "-t", "1", "web", "old").out == "web\nold\n"
    assert web.calls == [("stop", 1.0), ("start",)]
    assert old.calls == [("start",)]


def test_wait_prints_exit_codes(cli: Cli, engine: FakeEngine) -> None:
    """One line each; the command's own code stays 0."""
    engine.add("a", end=ended(3))
    engine.add("b", end=ended(None, 9))
    assert cli("wait", "a", "b") == (0, "3\n137\n", "")


def test_rename(cli: Cli, three: FakeEngine) -> None:
    """Silent, as in docker."""
    web = three.get("web")
    assert cli("rename", "web", "new") == (0, "", "")
    assert web.calls == [("rename", "new")]


def test_inspect_of_containers_and_images(cli: Cli, three: FakeEngine) -> None:
    """A JSON array; a name that is no container may be an image; a template per document."""
    documents = json.loads(cli("inspect", "web", "debian:12").out)
    assert documents[0]["Name"] == "web"
    assert documents[1]["names"] == ["debian:12"]
    assert cli("inspect", "-f", "{{.State.Pid}}", "web").out == "42\n"
    ran = cli("inspect", "--type", "image", "web")
    assert (ran.code, ran.out) == (125, "[]\n")


def test_top_stats_and_update_columns(cli: Cli, three: FakeEngine) -> None:
    """`top` has the processes; `stats --no-stream` one sample of what runs."""
    lines = cli("top", "web").out.splitlines()
    assert lines[0].split() == ["USER", "PID", "PPID", "RSS", "TIME", "COMMAND"]
    assert lines[1].split() == ["root", "7", "1", "2KiB", "00:01:01", "sleep", "9"]
    lines = cli("stats", "--no-stream").out.splitlines()
    assert lines[0].split("   ")[:2] == ["CONTAINER ID", "NAME"]
    assert len(lines) == 3
    assert "4MiB / 16MiB" in lines[1]
    assert "25.00%" in lines[1]
    assert "0.00%" in lines[1]  # the fake uses no CPU between the two samples


def test_logs_keep_bytes_and_streams(
    engine: FakeEngine, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Each line goes to its own stream, as bytes; pieces of a line are put together."""
    container = engine.add("c")

    def line(stream: str, data: bytes, partial: bool = False) -> SimpleNamespace:
        return SimpleNamespace(stream=stream, data=data, partial=partial, timestamp="T")

    engine.log_lines = [
        line("stdout", b"\xff1"),
        line("stderr", b"e"),
        line("stdout", b"a", partial=True),
        line("stdout", b"b"),
    ]
    from pycontain.cli import app

    app.run(("logs", "c"), open_engine=engine.open)
    assert capfdbinary.readouterr() == (b"\xff1\nab\n", b"e\n")
    app.run(("logs", "-t", "c"), open_engine=engine.open)
    assert capfdbinary.readouterr() == (b"T \xff1\nT ab\n", b"T e\n")
    app.run(
        ("logs", "-f", "-n", "5", "--since", "2026-01-31T00:00:00Z", "--until=5", "c"),
        open_engine=engine.open,
    )
    assert container.calls[-1] == (
        "logs",
        {"follow": True, "since": 1769817600.0, "until": 5.0, "tail": 5},
    )
    assert app.run(("logs", "--since", "yesterday", "c"), open_engine=engine.open) == 125


def test_cp_needs_one_container(cli: Cli, engine: FakeEngine) -> None:
    """Either side may be CONTAINER:PATH, exactly one is; ./a:b is a host file."""
    container = engine.add("c")
    assert cli("cp", "c:/etc", "/tmp").code == 0
    assert container.calls[-1] == ("copy_out", "/etc", "/tmp", False)
    assert cli("cp", "-a", "./x:y", "c:/tmp").code == 0
    assert container.calls[-1] == ("copy_in", "./x:y", "/tmp", True)
    for words in (("/a", "/b"), ("c:/a", "c:/b")):
        assert "exactly one of the two is CONTAINER:PATH" in cli("cp", *words).err


def test_attach_needs_a_running_container(cli: Cli, three: FakeEngine) -> None:
    """An ended one has logs instead."""
    ran = cli("attach", "old")
    assert ran.code == 125
    assert "container old does not run (see 'pycontain logs'" in ran.err


def test_image_verbs(cli: Cli, engine: FakeEngine) -> None:
    """`image ls` has a line per name; images and rmi are docker's short words."""
    lines = cli("images").out.splitlines()
    assert lines[0].split("   ")[:2] == ["REPOSITORY", "           TAG"] or "TAG" in lines[0]
    assert lines[1].split()[:3] == ["debian", "12", "abababababab"]
    assert lines[2].split()[:2] == ["localhost:5000/deb", "latest"]
    assert lines[3].split()[:3] == ["<none>", "<none>", "cdcdcdcdcdcd"]
    assert "124MB" in lines[1]
    assert cli("rmi", "-f", "debian:12").out == "debian:12\n"
    assert engine.images.calls[-1] == ("remove", "debian:12", True)
    assert cli("image", "rm", "nope").code == 125
    assert cli("image", "inspect", "-f", "{{.id}}", "debian").out.startswith("sha256:ab")


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("a.tar", "n"), ("import_archive", "a.tar", "n", "")),
        (("oci:/d:t",), ("import_archive", "/d", None, "t")),
        (("docker-archive:/f:r:1", "n"), ("import_archive", "/f", "n", "r:1")),
        (("oci-archive:/f",), ("import_archive", "/f", None, "")),
        (("--rootfs", "r.tar", "n"), ("import_rootfs_tar", "r.tar", "n")),
    ],
)
def test_image_import(
    cli: Cli, engine: FakeEngine, words: tuple[str, ...], call: tuple[object, ...]
) -> None:
    """Skopeo's forms, or a bare path; the id is printed."""
    assert cli("image", "import", *words).out == "sha256:" + "ab" * 32 + "\n"
    assert engine.images.calls == [call]


def test_info_prune_version(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`info` reads as words; `prune` says what went; `version` takes a template."""
    assert cli("info").out == (
        "kernel: 6.1\ncgroups:\n  memory: v1: /sys/fs/cgroup/memory\nroot: yes\n"
    )
    assert json.loads(cli("info", "--format", "json").out)["root"] is True
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli("prune").out == "Removed containers:\nold\nTotal reclaimed space: 7.83MB\n"
    assert cli("version", "-f", "{{.Kernel}}").out.strip() == os.uname().release
    assert cli("--version").out.startswith("pycontain ")
