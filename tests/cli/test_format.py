"""Templates, tables and JSON of `--format`."""

from __future__ import annotations

import json

import pytest

from pycontain.cli.arguments import UsageError
from pycontain.cli.format import Template, print_document, print_rows

VALUE = {
    "Name": "web",
    "State": {"Pid": 7, "Running": True, "Error": None},
    "Args": ["-a", "b c"],
    "Labels": {"com.example.x": "1"},
    "Mounts": [{"Source": "/a"}, {"Source": "/b"}],
    "Empty": [],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .State.Pid }}/{{.State.Running}}", "7/true"),
        ("{{.State.Error}}", ""),
        ("{{json .State}}", '{"Pid":7,"Running":true,"Error":null}'),
        ("{{.State | json}}", '{"Pid":7,"Running":true,"Error":null}'),
        ('{{index .Labels "com.example.x"}}', "1"),
        ('{{index .Labels "absent"}}', ""),
        ("{{index .Args 1}}", "b c"),
        ('{{join .Args ","}}', "-a,b c"),
        ("{{.Args}}", "[-a b c]"),
        ("{{.Labels}}", "map[com.example.x:1]"),
        ("{{upper .Name}} {{lower .Name}} {{title .Name}} {{len .Args}}", "WEB web Web 2"),
        ("{{(index .Mounts 0).Source}}", None),
        ("{{range .Mounts}}{{.Source}};{{end}}", "/a;/b;"),
        ("{{range .Mounts}}{{$.Name}}{{end}}", "webweb"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Empty}}up{{else}}down{{end}}", "down"),
        ("a\\tb\\n", "a\tb\n"),
        ("a  {{- .Name -}}  b", "awebb"),
        ('{{"quoted }"}}', "quoted }"),
    ],
)
def test_templates(template: str, expected: str | None) -> None:
    """The part of text/template that docker users type; a selector on a call is not part of it."""
    if expected is None:
        with pytest.raises(UsageError):
            Template(template).render(VALUE)
    else:
        assert Template(template).render(VALUE) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{.Nope}}",
        "{{.Name.Nope}}",
        "{{.Name",
        "{{}}",
        "{{nope .}}",
        "{{range .Mounts}}",
        "{{end}}",
        "{{index .Args 9}}",
        "{{json}}",
        "{{.Name .Name}}",
        '{{index .Labels "x}}',
        "{{.__class__}}",
        "{{.Args.append}}",
        "{{__import__}}",
    ],
)
def test_bad_templates_are_usage_errors(template: str) -> None:
    """Whatever is wrong names --format; nothing of Python can be reached."""
    with pytest.raises(UsageError, match=r"^--format: "):
        Template(template).render(VALUE)


def test_rows_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """As docker has it, one object per line."""
    print_rows([{"A": 1}, {"A": "é"}], "json", [("A", "A")])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"A": 1},
        {"A": "é"},
    ]


def test_a_table_of_chosen_columns_has_their_headers(capsys: pytest.CaptureFixture[str]) -> None:
    """`table {{.Names}}\\t{{.Status}}` prints headers and aligns."""
    rows = [{"Names": "a", "Status": "Up"}, {"Names": "longer", "Status": "Down"}]
    print_rows(rows, "table {{.Names}}\\t{{.Status}}", [("NAMES", "Names"), ("STATUS", "Status")])
    assert capsys.readouterr().out == "NAMES    STATUS\na        Up\nlonger   Down\n"


def test_a_document_is_text_json_or_template(capsys: pytest.CaptureFixture[str]) -> None:
    """The same document in the three layouts."""
    print_document({"A": 1}, None, "a: 1")
    print_document({"A": 1}, "json", "a: 1")
    print_document({"A": 1}, "{{.A}}", "a: 1")
    assert capsys.readouterr().out == 'a: 1\n{\n    "A": 1\n}\n1\n'
