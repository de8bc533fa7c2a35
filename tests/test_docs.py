"""The documentation speaks of things that exist: links, files, tests, names, flags, options."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pycontain
from pycontain.cli.app import VERBS, command_of
from pycontain.runtime.options import RunOptions

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
# Words of `Engine.run` and `Engine.container` that are not fields of RunOptions.
WORDS = {"input", "capture_output", "text", "encoding", "errors", "check", "stdin", "stdout"}
WORDS |= {"stderr", "engine", "options", "detach", "log"}
# Flags of other programs that the pages mention.
FOREIGN_FLAGS = {"--update-golden", "--variant", "--include", "--strict", "--json"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def examples(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each Python example."""
    text = page.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def python_examples() -> Iterator[Any]:
    for page in PAGES:
        for line, text in examples(page):
            yield pytest.param(text, id=f"{name_of(page)}:{line}")


@pytest.mark.parametrize("text", [*python_examples()])
def test_examples_use_what_exists(text: str) -> None:
    """An example compiles, imports public names only, and passes options that there are."""
    tree = ast.parse(text)
    options = set(RunOptions.__dataclass_fields__) | WORDS
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            home = importlib.import_module(node.module or "")
            for alias in node.names:
                value = getattr(home, alias.name)
                assert home is not pycontain or alias.name in pycontain.__all__
                if isinstance(value, ModuleType):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None:
                assert hasattr(module, node.attr), f"{node.value.id}.{node.attr}"
                assert module is not pycontain or node.attr in pycontain.__all__
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            ours = isinstance(owner, ast.Name) and owner.id in ("pycontain", "aio")
            if ours and node.func.attr in ("run", "Container"):
                unknown = {word.arg for word in node.keywords if word.arg} - options
                assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    """A relative link leads to a file of the repository, its fragment to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, fragment = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_relative_to(ROOT) and found.exists(), target
        if fragment:
            assert fragment in headings(found), target


def headings(page: Path) -> set[str]:
    """Return the fragments that GitHub makes of the page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_tests_exist(page: Path) -> None:
    """A path in backquotes exists, and so does the test or function that is named with it."""
    text = page.read_text()
    for path, test in re.findall(r"`((?:src|tests|bench)/[\w./]+)(?:::(\w+))?`", text):
        if path.endswith("_"):  # `src/.../monitor_*.c`
            continue
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
    for path, name in re.findall(r"`(src/[\w./]+\.(?:c|py))` `(\w+)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} {name}"


def test_lifecycle_names_functions_that_exist() -> None:
    """Each `file` `function` of the trace, below src/pycontain, is there."""
    text = (ROOT / "docs/lifecycle.md").read_text()
    found = re.findall(r"`([\w/]+\.(?:py|c))` `(?:\w+\.)?(\w+)`", text)
    assert len(found) > 20
    for path, name in found:
        source = ROOT / "src/pycontain" / path
        assert re.search(rf"\b{name}\b", source.read_text()), f"{path} {name}"


def test_c_functions_that_are_named_exist() -> None:
    """`pyc_op_mask` and the like in the threat model are functions of the child."""
    native = ROOT / "src/pycontain/_native"
    sources = "".join(file.read_text() for file in native.glob("*.[ch]"))
    text = (ROOT / "docs/threat-model.md").read_text()
    for name in re.findall(r"`(pyc_\w+|PYC_\w+)`", text):
        assert name in sources, name


@cache
def flags() -> set[str]:
    """Return every flag that the command has."""
    found = {"--help", "--state-root", "--data-root", "--debug", "--version"}
    for verb in VERBS:
        for option in command_of(verb).options:
            found |= {flag for flag in option.flags if flag.startswith("--")}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(page: Path) -> None:
    """A flag that a page names is one of `pycontain`, or of another program known here."""
    text = re.sub(r"https?://\S+", "", page.read_text())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named - flags() - FOREIGN_FLAGS == set()


def test_options_in_the_pages_are_fields() -> None:
    """An option of `run` written like `memory="64M"` in backquotes is one that there is."""
    options = set(RunOptions.__dataclass_fields__) | WORDS
    for page in PAGES:
        for name in re.findall(r'`(\w+)=(?:"[^"`]*"|[\d.]+|True|False)`', page.read_text()):
            assert name in options or name.isupper(), f"{name_of(page)}: {name}"


def test_the_benchmark_block_is_there_once() -> None:
    """The README has one place that measured figures are written to."""
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- bench:begin -->") == text.count("<!-- bench:end -->") == 1
    assert text.index("<!-- bench:begin -->") < text.index("<!-- bench:end -->")


def test_decision_records_are_numbered() -> None:
    """Records have consecutive numbers and the same parts."""
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [
        f"{number:04}" for number in range(1, len(records) + 1)
    ]
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}: ")
        for part in ("Context", "Decision", "Consequences"):
            assert f"\n## {part}\n" in text, f"{record.name}: {part}"
