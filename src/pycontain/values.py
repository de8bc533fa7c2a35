"""Frozen value classes that cost nothing to define: `@frozen` in place of `@dataclass`.

`dataclasses` compiles six methods for each class when its module is imported, and imports `inspect`
and `re` for that: 30 of the 80 ms of CPU that `pycontain run` took went there. Here the methods
are shared functions, and only `__init__` is compiled, when the first value is made. Everything
else is as with `@dataclass(frozen=True, slots=True)`: equality by type and fields, hash, repr,
match, copy, pickle, and `dataclasses.fields`, `asdict` and `replace` work on the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import field, replace
    from typing import dataclass_transform

    @dataclass_transform(frozen_default=True, field_specifiers=(field,))
    def frozen(cls: Any = None, *, kw_only: bool = False) -> Any: ...

    @dataclass_transform(field_specifiers=(field,))
    def mutable(cls: Any) -> Any: ...

    def defaults(cls: Any) -> tuple[tuple[str, Any], ...]: ...
else:

    class _Default:
        """A default that is made anew for each value."""

        __slots__ = ("factory",)

        def __init__(self, factory):
            self.factory = factory

    def field(*, default_factory: Callable[[], Any]) -> Any:
        """A field whose default is what `default_factory` returns."""
        return _Default(default_factory)

    def replace(old, /, **changes):
        """A copy of `old` with other values for some fields."""
        for name in old.__match_args__:
            if name not in changes:
                changes[name] = getattr(old, name)
        return type(old)(**changes)

    def frozen(cls=None, *, kw_only=False):
        """The class with slots for its annotated fields, frozen, and compared by value."""
        if cls is None:
            return lambda cls: frozen(cls, kw_only=kw_only)
        return _made(cls, _FROZEN, kw_only)

    def mutable(cls):
        """The class with slots for its annotated fields, compared by value, not hashable."""
        return _made(cls, _MUTABLE, False)

    def defaults(cls):
        """(name, default) of each field; a default that is made anew is made, none is None."""
        found = []
        for name in cls.__match_args__:
            default = cls._defaults.get(name)
            found.append((name, default.factory() if isinstance(default, _Default) else default))
        return tuple(found)

    def _made(cls, shared, kw_only):
        names = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063  (inspect costs 5 ms)
        members = dict(cls.__dict__)
        defaults = {name: members.pop(name) for name in names if name in members}
        for unwanted in ("__dict__", "__weakref__"):
            members.pop(unwanted, None)
        slots = (*names, "_hash") if shared is _FROZEN else names
        members.update(shared, __slots__=slots, __match_args__=names, _defaults=defaults)
        members["_kw_only"] = kw_only
        made = type(cls)(cls.__name__, cls.__bases__, members)
        made.__qualname__ = cls.__qualname__
        return made

    def _first_init(self, *args, **kwargs):
        """Compile the class's `__init__`, and be it this once."""
        cls = type(self)
        cls.__init__ = _compile_init(cls)
        cls.__init__(self, *args, **kwargs)

    def _compile_init(cls):
        """A function with one parameter for each field; frozen or not, it sets the slots."""
        scope = {"_set": object.__setattr__}
        parameters = ["self", "*"] if cls._kw_only else ["self"]
        body = []
        for name in cls.__match_args__:
            given = name
            if name in cls._defaults:
                default = cls._defaults[name]
                scope[f"_d_{name}"] = default
                parameters.append(f"{name}=_d_{name}")
                if isinstance(default, _Default):
                    given = f"{name} if {name} is not _d_{name} else _d_{name}.factory()"
            else:
                parameters.append(name)
            body.append(f" _set(self, {name!r}, {given})")
        source = f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or [" pass"])
        exec(source, scope)  # noqa: S102  (field names of our own classes, as in dataclasses)
        return scope["__init__"]

    def _items(self):
        return tuple([getattr(self, name) for name in self.__match_args__])

    def _equal(self, other):
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self is other or _items(self) == _items(other)

    def _hashed(self):
        try:
            return self._hash  # of a value that can't change: worked out once
        except AttributeError:
            object.__setattr__(self, "_hash", hash(_items(self)))
            return self._hash

    def _repr(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({shown})"

    def _frozen(self, name, *value):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot change {name!r} of {type(self).__qualname__}")

    def _set_state(self, state):
        for name, item in zip(self.__match_args__, state, strict=True):
            object.__setattr__(self, name, item)

    class _Fields:
        """What `dataclasses` looks at, made when it does."""

        def __get__(self, instance, cls):
            import dataclasses

            specification = []
            for name in cls.__match_args__:
                kind = cls.__annotations__[name]
                default = cls._defaults.get(name, dataclasses.MISSING)
                if isinstance(default, _Default):
                    options = dataclasses.field(default_factory=default.factory)
                else:
                    options = dataclasses.field(default=default)
                specification.append((name, kind, options))
            twin = dataclasses.make_dataclass(
                cls.__name__, specification, kw_only=cls._kw_only, frozen=True
            )
            cls.__dataclass_fields__ = twin.__dataclass_fields__
            return twin.__dataclass_fields__

    _MUTABLE = {
        "__init__": _first_init,
        "__eq__": _equal,
        "__hash__": None,
        "__repr__": _repr,
        "__getstate__": _items,
        "__setstate__": _set_state,
        "__dataclass_fields__": _Fields(),
    }
    _FROZEN = {
        **_MUTABLE,
        "__hash__": _hashed,
        "__setattr__": _frozen,
        "__delattr__": _frozen,
    }

__all__ = ["defaults", "field", "frozen", "mutable", "replace"]
