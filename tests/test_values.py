"""`@frozen` is `@dataclass(frozen=True, slots=True)` to all who use the class."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest

from pycontain.values import field, frozen, replace


@frozen
class Point:
    """A value with and without defaults."""

    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)

    @property
    def sum(self) -> int:
        """Methods are kept."""
        return self.x + self.y


@frozen(kw_only=True)
class Options:
    """All by name."""

    a: int | None = None
    b: str = "b"


def test_values_are_made_compared_and_shown_as_dataclasses_are() -> None:
    """Positional, named and default fields; equality by type; hash; repr; match."""
    point = Point(1, tags=["t"])
    assert (point.x, point.y, point.tags, point.sum) == (1, 2, ["t"], 3)
    assert repr(point) == "Point(x=1, y=2, tags=['t'])"
    assert point == Point(1, 2, ["t"])
    assert point != Point(1, 3, ["t"])
    assert Options() != (None, "b")
    assert hash(Options(a=1)) == hash(Options(a=1))
    assert Point(1).tags is not Point(1).tags
    match point:
        case Point(1, y):
            assert y == 2


def test_values_are_frozen_and_have_slots() -> None:
    """Nothing can be set, deleted or added."""
    point = Point(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 1
    assert not hasattr(point, "__dict__")


@pytest.mark.parametrize(
    "call", [lambda: Point(), lambda: Point(1, z=1), lambda: Options(1), lambda: Point(1, 2, [], 4)]
)
def test_wrong_arguments_are_type_errors(call: object) -> None:
    """Missing, unknown, positional where only names are taken, too many."""
    with pytest.raises(TypeError, match="__init__"):
        call()  # type: ignore[operator]


def test_copies_and_pickles_are_equal() -> None:
    """As values are sent between processes, or kept."""
    point = Point(1, tags=["t"])
    assert copy.copy(point) == copy.deepcopy(point) == point
    assert pickle.loads(pickle.dumps(point)) == point
    assert replace(point, y=9) == dataclasses.replace(point, y=9) == Point(1, 9, ["t"])


def test_the_standard_functions_work_on_values() -> None:
    """is_dataclass, fields with defaults, asdict with values inside."""
    assert dataclasses.is_dataclass(Point)
    assert [f.name for f in dataclasses.fields(Point)] == ["x", "y", "tags"]
    assert [f.default for f in dataclasses.fields(Options)] == [None, "b"]
    assert dataclasses.asdict(Point(1, tags=["t"])) == {"x": 1, "y": 2, "tags": ["t"]}
    assert dataclasses.asdict(Point(Options())) == {  # type: ignore[arg-type]
        "x": {"a": None, "b": "b"}, "y": 2, "tags": [],
    }  # fmt: skip


def test_defining_and_making_values_does_not_import_dataclasses() -> None:
    """That import alone is a tenth of a short command's time."""
    script = (
        "import sys; from pycontain.values import frozen\n"
        "@frozen\nclass A:\n x: int = 1\n"
        "assert A(2) == A(2) != A() and repr(A()) == 'A(x=1)'\n"
        "print('dataclasses' in sys.modules, 'inspect' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
