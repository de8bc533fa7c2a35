"""The user's side of a terminal: nothing typed or printed is lost, and the terminal is restored."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.errors import InvalidInput
from pycontain.runtime.console import DetachKeys, parse_detach_keys, raw_mode, relay


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-a,x", b"\x01x"),
        ("a", b"a"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\0\x1b\x1c\x1d\x1e\x1f"),
        ("CTRL-P", b"\x10"),
        ("", b""),
    ],
)
def test_detach_keys_grammar(text: str, keys: bytes) -> None:
    """Docker's words."""
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", ",", "alt-x", "é", "ctrl-ab"])
def test_bad_detach_keys(text: str) -> None:
    """The error names the option."""
    with pytest.raises(InvalidInput, match=r"^detach_keys: "):
        parse_detach_keys(text)


@given(st.binary(max_size=6), st.lists(st.binary(max_size=8), max_size=8))
def test_detach_keys_are_found_across_pieces(keys: bytes, pieces: list[bytes]) -> None:
    """However input is cut: what comes before the keys passes in order, and nothing is lost."""
    alphabet = bytes.maketrans(bytes(range(256)), b"\x10\x11" * 128)
    keys = keys.translate(alphabet)
    pieces = [piece.translate(alphabet) for piece in pieces]
    detector = DetachKeys(keys)
    passed, found = b"", False
    for piece in pieces:
        out, found = detector.feed(piece)
        passed += out
        if found:
            break
    whole = b"".join(pieces)
    place = whole.find(keys) if keys else -1
    assert found == (place >= 0)
    if found:
        assert passed == whole[:place]
    else:
        assert whole.startswith(passed) and len(whole) - len(passed) < max(1, len(keys))


class Peer(threading.Thread):
    """The monitor's side of a socket: collects all input, then says something and leaves."""

    def __init__(self, sock: socket.socket, wanted: int, answer: bytes = b"") -> None:
        super().__init__()
        self.sock, self.wanted, self.answer = sock, wanted, answer
        self.got = b""

    def run(self) -> None:
        with self.sock:
            while len(self.got) < self.wanted and (data := self.sock.recv(777)):
                self.got += data
            self.sock.sendall(self.answer)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(master, slave) of a new terminal."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_paste_arrives_whole_and_the_end_is_drained() -> None:
    """64 KiB and more of input to a slow reader; a last megabyte of output is not cut off."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    paste, answer = os.urandom(1 << 18).replace(b"\x10", b"x"), os.urandom(1 << 20)
    peer = Peer(theirs, len(paste), answer)
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    received = bytearray()

    def collect() -> None:
        while data := os.read(out_read, 65536):
            received.extend(data)

    def type_() -> None:
        view = memoryview(paste)
        while view:
            view = view[os.write(in_write, view) :]

    threads = [peer, threading.Thread(target=collect), threading.Thread(target=type_)]
    for thread in threads:
        thread.start()
    with ours:
        assert relay(ours, stdin_fd=in_read, stdout_fd=out_write) is False
    os.close(out_write)
    for thread in threads:
        thread.join()
    assert peer.got == paste and bytes(received) == answer
    for fd in (in_read, in_write, out_read):
        os.close(fd)


def test_the_end_of_a_pipe_is_ctrl_d() -> None:
    """A program in the container that reads its terminal sees the end of input."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.write(write, b"hi\n")
    os.close(write)
    peer = Peer(theirs, 4)
    peer.start()
    with ours, open(os.devnull, "wb") as null:
        assert not relay(ours, stdin_fd=read, stdout_fd=null.fileno())
    peer.join()
    os.close(read)
    assert peer.got == b"hi\n\x04"


def test_detaching_leaves_and_restores(terminal: tuple[int, int]) -> None:
    """Raw while relaying, as before afterwards; the keys themselves are not passed on."""
    master, slave = terminal
    before = termios.tcgetattr(slave)
    modes = []

    def on_resize(rows: int, columns: int) -> None:
        modes.append(termios.tcgetattr(slave)[3] & termios.ICANON)
        sizes.append((rows, columns))
        os.write(master, b"ls\r\x10" + b"\x11more")

    sizes: list[tuple[int, int]] = []
    termios.tcsetwinsize(slave, (33, 99))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert relay(ours, stdin_fd=slave, stdout_fd=slave, on_resize=on_resize) is True
        assert theirs.recv(100) == b"ls\r"
    assert modes == [0] and sizes == [(33, 99)]
    assert termios.tcgetattr(slave) == before


def test_resize_is_heard(terminal: tuple[int, int]) -> None:
    """SIGWINCH leads to the new size; the handler before is put back."""
    master, slave = terminal
    sizes: list[tuple[int, int]] = []

    def on_resize(rows: int, columns: int) -> None:
        sizes.append((rows, columns))
        if len(sizes) == 1:
            termios.tcsetwinsize(slave, (50, 132))
            os.kill(os.getpid(), signal.SIGWINCH)
        else:
            os.write(master, b"\x01x")

    handler = signal.getsignal(signal.SIGWINCH)
    termios.tcsetwinsize(slave, (24, 80))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert relay(
            ours, stdin_fd=slave, stdout_fd=slave, detach_keys="ctrl-a,x", on_resize=on_resize
        )
    assert sizes == [(24, 80), (50, 132)]
    assert signal.getsignal(signal.SIGWINCH) == handler


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_every_exit_restores_the_terminal(
    terminal: tuple[int, int], error: type[BaseException]
) -> None:
    """An exception from anywhere, ctrl-C from outside included."""
    _, slave = terminal
    before = termios.tcgetattr(slave)
    ours, theirs = socket.socketpair()

    def fail(rows: int, columns: int) -> None:
        raise error

    with ours, theirs, pytest.raises(error):
        relay(ours, stdin_fd=slave, stdout_fd=slave, on_resize=fail)
    assert termios.tcgetattr(slave) == before


def test_a_file_is_not_made_raw(tmp_path: object) -> None:
    """Input from a file or none at all is fine."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"out")
    theirs.close()
    read, write = os.pipe()
    with raw_mode(read) as again, ours:
        again()
        assert not relay(ours, stdin_fd=-1, stdout_fd=write)
    assert os.read(read, 10) == b"out"
    os.close(read)
    os.close(write)
