"""The monitor's pure part, the log format, hosted and under the address sanitizer."""

from __future__ import annotations

import datetime
import random
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src/pycontain/_native"
SEGMENT_BYTES = 16384
LEAST_ROOM = SEGMENT_BYTES + 48 + 3
FLAGS = ("-std=gnu17", "-O1", "-g", "-fno-builtin", f"-I{NATIVE}")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    program = tmp_path_factory.mktemp("cri") / "harness"
    # The monitor's own mem*() would replace those that the sanitizer watches.
    primitives = program.with_suffix(".o")
    names = [f"-D{name}=own_{name}" for name in ("memcpy", "memmove", "memset", "memcmp", "strlen")]
    source = str(NATIVE / "freestanding.c")
    subprocess.run(["gcc", *FLAGS, *names, "-c", source, "-o", str(primitives)], check=True)
    sources = (Path(__file__).with_name("cri_harness.c"), NATIVE / "monitor_cri.c", primitives)
    command = ["gcc", *FLAGS, *SANITIZE, *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def formatted(harness: Path, raw: bytes, room: int = 131072, time: tuple[int, int] = (0, 0)) -> str:
    seconds, nanoseconds = map(str, time)
    done = subprocess.run(
        [str(harness), str(room), seconds, nanoseconds], input=raw, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("latin-1")


def rows(text: str) -> list[tuple[str, str]]:
    """(tag, text) of each record."""
    found = [line.split(" ", 3) for line in text.split("\n")[:-1]]
    assert all(row[1] == "stdout" for row in found)
    return [(row[2], row[3]) for row in found]


def joined(records: list[tuple[str, str]]) -> bytes:
    return "".join(t + ("\n" if tag == "F" else "") for tag, t in records).encode("latin-1")


def test_whole_lines_and_a_piece(harness: Path) -> None:
    """A line is F, without its newline; what has none is P; an empty line is an empty F."""
    assert rows(formatted(harness, b"one\n\ntwo")) == [("F", "one"), ("F", ""), ("P", "two")]


@pytest.mark.parametrize("length", [SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1])
def test_long_lines_are_cut(harness: Path, length: int) -> None:
    """No record holds more than 16 KiB of text, and none is cut without need."""
    records = rows(formatted(harness, b"x" * length + b"\n"))
    assert [tag for tag, _ in records] == (["F"] if length <= SEGMENT_BYTES else ["P", "F"])
    assert joined(records) == b"x" * length + b"\n"


@pytest.mark.parametrize("room", [LEAST_ROOM, LEAST_ROOM + 1, 65536, 131072])
@pytest.mark.parametrize("seed", range(6))
def test_any_bytes_come_back(harness: Path, room: int, seed: int) -> None:
    """Whatever the bytes and the room, joining the records gives them back."""
    random_ = random.Random(seed)
    raw = b"".join(
        random_.choice((b"\n", b"a\n", b"\0 F ", random_.randbytes(random_.randrange(40000))))
        for _ in range(random_.randrange(60))
    )
    records = rows(formatted(harness, raw, room))
    assert joined(records) == raw
    assert all(len(text) <= SEGMENT_BYTES for _, text in records)


@pytest.mark.parametrize(
    "date",
    [
        (1970, 1, 1, 0, 0, 0),
        (1999, 12, 31, 23, 59, 59),
        (2000, 2, 29, 12, 0, 1),
        (2026, 11, 20, 20, 28, 1),
        (2100, 3, 1, 0, 0, 0),
        (2400, 2, 29, 23, 0, 9),
    ],
)
def test_time_is_rfc3339(harness: Path, date: tuple[int, int, int, int, int, int]) -> None:
    """The time of a record is UTC, with nanoseconds, across leap years and centuries."""
    moment = datetime.datetime(*date, tzinfo=datetime.UTC)
    text = formatted(harness, b"x\n", time=(int(moment.timestamp()), 123456))
    assert text.split()[0] == moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + ".000123456Z"
