"""Templates: columns in braces, Jinja, and their bounds."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mapping.errors import MappingError, RowError
from mapping.template import Template

ROW: dict[str, Any] = {
    "text": "Hello",
    "Ticket text": "Hi",
    "amount": "3.50",
    "empty": None,
    "user": {"name": "Ann", "tags": ["a", "b"]},
}


def render(source: str, values: dict | None = None) -> str:
    values = values or ROW
    return Template(source, tuple(values)).render(values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Classify: {text}", "Classify: Hello"),
        ("{ text }|{Ticket text}|{{ text }}|{{text}}", "Hello|Hi|Hello|Hello"),
        ("{{ row['Ticket text'] }} {{ row.text }}", "Hi Hello"),
        ("{{ text|upper }}", "HELLO"),
        ("{user}", '{"name":"Ann","tags":["a","b"]}'),
        ("{{ user.name }} {{ user['tags']|join('+') }}", "Ann a+b"),
        ("[{empty}]", "[]"),
        ("{% if amount|float > 3 %}much{% else %}little{% endif %} 100%", "much 100%"),
        ("{% for tag in user.tags %}<{{ tag }}>{% endfor %}", "<a><b>"),
        ("{{ user|tojson }} {{ '<&>'|tojson }}", '{"name":"Ann","tags":["a","b"]} "<&>"'),
        ("line\n{text}\n", "line\nHello\n"),
        ("{{ text ~ '-' ~ amount }}", "Hello-3.50"),
    ],
)
def test_columns_and_jinja_are_rendered(source, expected):
    assert render(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        'Answer as {"category": "x", "n": 1} ',
        'Answer as {"a": {"b": [1, {}]}} ',
        "{ } {} {1} {0.5} { a: 1, b: 2 } function f() { return 1; } ",
        '{"text": ""} {"Ticket text"} ',
        "\\section{} {1,2,3} {\n} 50 % {:.2f} ",
    ],
)
def test_braces_of_json_and_code_are_text(source):
    assert render(source + "{text}") == source + "Hello"


def test_braces_that_would_be_columns_can_be_text():
    assert render("{% raw %}{x} {{ y }}{% endraw %} {text}") == "{x} {{ y }} Hello"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{txet}", "no column 'txet'; did you mean 'text'?"),
        ("{Text}", "did you mean 'text'?"),
        ("{{ txet }}", "did you mean 'text'?"),
        ("{Ticket txt}", "did you mean 'Ticket text'?"),
        ("{{ row['Ticket txt'] }}", "did you mean 'Ticket text'?"),
        ("{{ row.txet }}", "did you mean 'text'?"),
        ("{zzz}", "it has text, Ticket text, amount, empty, user"),
        ("{amount:.2f}", "write such as {{ amount|upper }}"),
        ("{user.name}", "{{ user.key }}"),
        ("{{ text", "is no template"),
        ("{{ text|nofilter }}", "No filter named 'nofilter'"),
        ("{{ text is notest }}", "No test named"),
        ("{% if %}", "is no template"),
        ('{{"a": 1}}', "is no template"),
        ("{% include 'x' %}", "include is not available"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}", "macro is not available"),
        ("{% set x %}{{ text }}{% endset %}", "assignblock is not available"),
        ("{% for x in user.tags recursive %}{{ loop(user.tags) }}{% endfor %}", "recursive loops"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "is no template"),
        ("{% for a in text %}" * 30 + "{% endfor %}" * 30, "is no template"),
    ],
)
def test_an_error_says_what_to_write(source, message):
    with pytest.raises(MappingError) as raised:
        Template(source, tuple(ROW))
    assert message in str(raised.value)
    assert raised.value.param == "prompt"


def test_a_column_may_have_any_name():
    names = ["row", "in", "class", 'say "hi"', "Kunde's Name", "日本", "a.b", "%s", "\\n", "loop", "0"]
    values = {name: f"<{name}>" for name in names}
    source = "".join("{" + name + "}" for name in names)
    assert render(source, values) == "".join(values.values())
    assert Template("{{ row }} {in}", names).used == {"row", "in"}


def test_used_columns_are_found():
    assert Template("{text} {{ user.name }} {{ row['amount'] }}", tuple(ROW)).used == {"text", "user", "amount"}
    assert Template("{{ row }}", tuple(ROW)).used == set(ROW)
    assert Template("{% for name in row %}{{ row[name] }}{% endfor %}", tuple(ROW)).used == set(ROW)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ text * 10**8 }}",
        "{{ [text] * 10**8 }}",
        "{{ 9**9999999 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%s' % text }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ text.center(10**9) }}",
        "{{ text.zfill(10**9) }}",
        "{{ text.replace('', 'x' * 1000) }}",
        "{{ ('a' * 100000)|replace('', 'b' * 100000) }}",
        "{{ range(10**9)|list }}",
        "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
        "{% for a in range(10000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{% set a = 'x' * 4000000 %}{% set a = a ~ a %}{{ a }}",
        "{% set a = 'x' * 4000000 %}{% set a = a + a %}{{ a }}",
        "{{ ['x' * 4000000, 'x' * 4000000]|join }}",
        "{{ (1).to_bytes(10**9) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ row.clear() }}",
        "{{ user.tags.append(1) }}",
        "{{ user.nothing }}",
        "{{ text.nothing.more }}",
        "{{ amount > 3 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_bomb_or_a_failure_ends_with_its_row(source):
    template = Template(source + "{text}", tuple(ROW))
    start = time.process_time()
    with pytest.raises(RowError, match="'prompt' fails"):
        template.render(ROW)
    assert time.process_time() - start < 2
    assert ROW["user"]["tags"] == ["a", "b"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ text|center(10**9) }}",
        "{{ text|indent(10**9) }}",
        "{{ text|random }}",
        "{{ user|attr('name') }}",
        "{{ user|xmlattr }}",
        "{{ [text]|map('center', 9)|list }}",
        "{{ lipsum(n=10**6) }}",
        "{{ cycler(1) }}",
        "{% set ns = namespace(x=1) %}",
    ],
)
def test_other_filters_and_functions_are_not_available(source):
    with pytest.raises((MappingError, RowError)):
        Template(source + "{text}", tuple(ROW)).render(ROW)


def test_each_row_may_loop_anew():
    template = Template("{% for a in range(15000) %}{% endfor %}{text}", tuple(ROW))
    assert [template.render(ROW) for _ in range(3)] == ["Hello"] * 3
