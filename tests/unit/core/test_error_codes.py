"""The table of error codes has every code that this code base gives, and no other; `docs/errors.md` is made of it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from core.error_codes import ERROR_CODES, LINES, remedy, tables
from core.errors import OPERATORS_FAULT
from core.schemas.base import _CODES
from core.settings import ROOT

TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for room in ("api", "core", "db", "engine", "mapping", "workers")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def code_parameters() -> dict[str, int]:
    """The place of the parameter `code` in functions that have one."""
    return {
        node.name: [each.arg for each in node.args.args].index("code")
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "code" in [each.arg for each in node.args.args]
    }


def assigned(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                yield name, value


@cache
def constants(module: str) -> dict[str, set[str]]:
    """The texts that are assigned to names in a module."""
    names: dict[str, set[str]] = defaultdict(set)
    for name, value in assigned(TREES[module]):
        names[name] |= texts(value, {})
    return names


def names_of(module: str) -> dict[str, set[str]]:
    """The same with the names that it imports."""
    names = constants(module).copy()
    for node in TREES[module].body:
        if isinstance(node, ast.ImportFrom) and node.module in TREES:
            for alias in node.names:
                names[alias.asname or alias.name] |= constants(node.module)[alias.name]
    return names


def texts(value: ast.expr, names: dict[str, set[str]]) -> set[str]:
    """The texts that an expression may be."""
    match value:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Name(id=name):
            return names.get(name, set())
        case ast.BoolOp(values=values):
            return set().union(*(texts(each, names) for each in values))
        case ast.IfExp(body=body, orelse=other):
            return texts(body, names) | texts(other, names)
    return set()


@cache
def codes_given() -> set[str]:
    """The codes in arguments, fields and attributes that are called `code`."""
    places = code_parameters()
    found = {*OPERATORS_FAULT, *_CODES.values()}
    for module, tree in TREES.items():
        names = names_of(module)
        for name, value in assigned(tree):
            if name == "code":
                found |= texts(value, names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                given = [each.value for each in node.keywords if each.arg == "code"]
                given += node.args[places[called] :][:1] if called in places else []
                found = found.union(*(texts(value, names) for value in given))
    return found


def test_every_code_has_a_meaning_and_a_remedy() -> None:
    assert codes_given() - set(ERROR_CODES) == set()
    for code, (meaning, step) in ERROR_CODES.items():
        assert meaning.endswith("."), code
        assert step.endswith("."), code


def test_every_code_of_the_table_is_given_somewhere() -> None:
    assert set(ERROR_CODES) - codes_given() == set()
    assert len(codes_given()) > 70


def test_the_page_has_the_table_as_it_is() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert tables() in page, "`python -m core.error_codes` prints the tables of docs/errors.md"


def test_a_code_of_a_server_upstream_has_a_remedy_too() -> None:
    assert remedy("batch_expired") == LINES["batch_expired"].remedy
    assert remedy("content_policy_violation") == remedy(None) != ""
