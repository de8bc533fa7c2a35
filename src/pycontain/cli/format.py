"""`--format`: json, table, or a template: the part of Go's text/template that docker users type.

A template only reads: fields of the value (`{{.State.Pid}}`), the functions json, index, join,
len, lower, println, title and upper (`{{index .Labels "a"}}`), pipes, `{{range .}}...{{end}}` and
`{{if .}}...{{else}}...{{end}}`. Nothing is evaluated as Python, and no attribute is reached: values
are dicts, lists and scalars only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Option, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["FORMAT", "Template", "print_document", "print_rows", "to_json"]

FORMAT = Option(("--format",), "json, table, or a template such as '{{.Name}}'", "FORMAT")
_FIELD = "--format"
_ESCAPES = (("\\t", "\t"), ("\\n", "\n"))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON; keys keep their order."""
    import json

    separators = None if indent else (",", ":")
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, default=str)


def print_document(document: Mapping[str, Any], layout: str | None, text: str) -> None:
    """Print one document: as `text` by default, as JSON, or through the template `layout`."""
    if layout in (None, "", "table"):
        print(text, end="" if text.endswith("\n") else "\n")
    elif layout == "json":
        print(to_json(document, indent=4))
    else:
        assert layout is not None
        print(Template(layout).render(document))


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    layout: str | None,
    columns: Sequence[tuple[str, str]],
    *,
    width: int | None = None,
) -> None:
    """Print rows: a table of `columns` (header, key), JSON lines, or a template per row.

    As in docker, `table {{.Name}}\\t{{.Status}}` is a table of just these columns. Lines are cut to
    `width` characters, by default to the terminal's if stdout is one.
    """
    from pycontain.cli.tables import render_table, terminal_columns

    if layout == "json":
        for row in rows:
            print(to_json(row))
        return
    if layout in (None, "", "table"):
        headers = [header for header, _ in columns]
        cells = [[str(row.get(key, "")) for _, key in columns] for row in rows]
    elif layout is not None and layout.startswith("table "):
        template = Template(layout.removeprefix("table ").strip())
        titles = {key: header for header, key in columns}
        headers = template.render(_Titles(titles)).split("\t")
        cells = [template.render(row).split("\t") for row in rows]
        cells = [(line + [""] * len(headers))[: len(headers)] for line in cells]
    else:
        template = Template(layout or "")
        for row in rows:
            print(template.render(row))
        return
    print(render_table(headers, cells, columns=width or terminal_columns()), end="")


class _Titles(dict[str, str]):
    """The header of each column by its key; a key that has none is its own, in capitals."""

    def __missing__(self, key: str) -> str:
        return key.upper()

    def __contains__(self, key: object) -> bool:
        return True


class Template:
    """A parsed template; `render` may be called for any number of values.

    Raises:
        UsageError: at once, for a template that is not well-formed.
    """

    def __init__(self, text: str) -> None:
        for typed, meant in _ESCAPES:
            text = text.replace(typed, meant)
        self._parts = _split(text)
        self._nodes, end = self._block(0)
        if end != len(self._parts):
            raise _bad(f"{{{{{self._parts[end][1]}}}}} closes nothing")

    def render(self, value: Any) -> str:
        """The text of the template for `value`.

        Raises:
            UsageError: a field that `value` does not have.
        """
        return "".join(_render(node, value, value) for node in self._nodes)

    def _block(self, position: int) -> tuple[list[tuple[Any, ...]], int]:
        """The nodes from `position` up to the closing `end` or `else`, and its position."""
        nodes: list[tuple[Any, ...]] = []
        while position < len(self._parts):
            kind, text = self._parts[position]
            if kind == "text":
                nodes.append(("text", text))
                position += 1
                continue
            words = _words(text)
            if words in (["end"], ["else"]):
                break
            if words[0] in ("range", "if") and len(words) > 1:
                body, position = self._block(position + 1)
                other: list[tuple[Any, ...]] = []
                if position < len(self._parts) and self._parts[position][1] == "else":
                    other, position = self._block(position + 1)
                if position >= len(self._parts):
                    raise _bad(f"{{{{{text}}}}} has no {{{{end}}}}")
                nodes.append((words[0], words[1:], body, other))
            else:
                _check_call(words)
                nodes.append(("value", words))
            position += 1
        return nodes, position


def _split(text: str) -> list[tuple[str, str]]:
    """The text and actions in order; `{{-` and `-}}` trim the white space beside them."""
    parts: list[tuple[str, str]] = []
    trim = False
    while text:
        before, opened, rest = text.partition("{{")
        if trim:
            before = before.lstrip()
        action, closed, text = rest.partition("}}")
        if opened and not closed:
            raise _bad("{{ without }}")
        if action.startswith("- "):
            before, action = before.rstrip(), action[1:]
        trim = action.endswith(" -")
        if before:
            parts.append(("text", before))
        if opened:
            action = action.removesuffix(" -").strip()
            if not action:
                raise _bad("{{}} is empty")
            parts.append(("action", action))
    return parts


def _words(text: str) -> list[str]:
    """The words of an action; a quoted string is one word and keeps its opening quote."""
    words: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char.isspace():
            position += 1
        elif char in '"`':
            end = text.find(char, position + 1)
            if end < 0:
                raise _bad(f"{text!r}: a quote is not closed")
            words.append('"' + text[position + 1 : end])
            position = end + 1
        elif char in "()|":
            words.append(char)
            position += 1
        else:
            end = position
            while end < len(text) and not text[end].isspace() and text[end] not in "()|":
                end += 1
            words.append(text[position:end])
            position = end
    return words


def _check_call(words: list[str]) -> None:
    """Every command of the pipe begins with a value or a function that exists."""
    start = True
    for word in words:
        if start and word[0] not in '."$(' and word not in _FUNCTIONS and not _is_number(word):
            raise _bad(f"no function {word!r}")
        start = word in ("|", "(")


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _render(node: tuple[Any, ...], value: Any, root: Any) -> str:
    kind = node[0]
    if kind == "text":
        return str(node[1])
    found = _pipe(list(node[1]), value, root)
    if kind == "value":
        return _text(found)
    body, other = node[2], node[3]
    if kind == "if":
        chosen = [(value, body if found else other)]
    elif found:
        items = list(found.values()) if hasattr(found, "values") else list(found)
        chosen = [(item, body) for item in items]
    else:
        chosen = [(value, other)]
    return "".join(_render(part, item, root) for item, nodes in chosen for part in nodes)


def _pipe(words: list[str], value: Any, root: Any) -> Any:
    """The value of `command | command ...`; takes the words up to its end off `words`."""
    results: list[Any] = []
    operands: list[Any] = []
    function: Callable[..., Any] | None = None
    while words:
        word = words.pop(0)
        if word == ")":
            break
        if word == "|":
            results = [_apply(function, operands + results)]
            function, operands = None, []
        elif word == "(":
            operands.append(_pipe(words, value, root))
        elif word in _FUNCTIONS and function is None and not operands:
            function = _FUNCTIONS[word]
        else:
            operands.append(_operand(word, value, root))
    return _apply(function, operands + results)


def _apply(function: Callable[..., Any] | None, operands: list[Any]) -> Any:
    if function is None:
        if len(operands) != 1:
            raise _bad("an action is one value, or a function and its values")
        return operands[0]
    try:
        return function(*operands)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise _bad(f"can't apply a function to {operands!r}: {error}") from None


def _operand(word: str, value: Any, root: Any) -> Any:
    if word.startswith('"'):
        return word[1:]
    if _is_number(word):
        return int(word)
    if word.startswith("$"):
        value, word = root, word[1:] or "."
    if not word.startswith("."):
        raise _bad(f"{word!r} is no field (fields begin with a point)")
    for name in filter(None, word.split(".")):
        try:
            value = value[name] if hasattr(value, "keys") and name in value else _missing(name)
        except TypeError:
            _missing(name)
    return value


def _missing(name: str) -> Any:
    raise UsageError(f"there is no field {name!r}", field=_FIELD, hint="{{json .}} shows them all")


def _text(value: Any) -> str:
    """`value` as Go prints it, except that nothing is the empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_text, value)) + "]"
    if hasattr(value, "items"):
        return "map[" + " ".join(f"{key}:{_text(item)}" for key, item in value.items()) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    """Nested lookup; a key that a mapping lacks is the empty text, as Go's zero value."""
    for key in keys:
        value = value.get(key, "") if hasattr(value, "get") else value[key]
    return value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "index": _index,
    "join": lambda items, separator: separator.join(map(_text, items)),
    "json": to_json,
    "len": len,
    "lower": lambda value: _text(value).lower(),
    "println": lambda *values: " ".join(map(_text, values)) + "\n",
    "title": lambda value: _text(value).title(),
    "upper": lambda value: _text(value).upper(),
}


def _bad(message: str) -> UsageError:
    return UsageError(message, field=_FIELD)
