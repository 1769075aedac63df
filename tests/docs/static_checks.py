"""What can be found wrong in a block without running it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer
import yaml

from cli.main import app
from core.errors import ConfigError
from core.models.model_files import load_model
from core.schemas.base import parse_body
from core.schemas.batch import BatchLine
from core.schemas.endpoints import CHAT_ENDPOINT, EMBEDDINGS_ENDPOINT, ENDPOINTS, RESPONSES_ENDPOINT
from core.setting_errors import PREFIX, TOML_FILE
from core.settings import Settings
from tests.docs.blocks import LANGUAGES, Block, syntax_error, transcript

_COMMAND: Final = typer.main.get_command(app)
_BEFORE_A_COMMAND: Final = ("sudo", "exec", "nohup", "time", "--", "if", "then", "do", "!", "millrace:latest")
_OPERATOR: Final = re.compile(r"[();<>|&\n]+")
_TESTS_AND_CI: Final = (
    "MILLRACE_CI",
    "MILLRACE_FAILPOINT",
    "MILLRACE_BENCH",
    "MILLRACE_TEST",
    "MILLRACE_NO_USER_NAMESPACE",
)


def problem_of(block: Block, folder: Path) -> str:
    """Return what is wrong with a block; empty if nothing is. `folder` is an empty one, for model files."""
    if block.language not in LANGUAGES:
        return f"the language {block.language!r} is none of {', '.join(LANGUAGES)}"
    check = {
        "sh": _shell,
        "console": _transcript,
        "python": _python,
        "json": _json,
        "jsonl": _json,
        "yaml": _yaml,
        "toml": _toml,
        "js": _javascript,
    }.get(block.language)
    if check is None or (block.is_output and block.language != "python"):
        return ""
    return check(block.code, folder)


def unknown_settings(text: str) -> list[str]:
    """Return the variables of a text that look like settings and are none; a name that ends in `_` is a family of them."""
    names = {f"{PREFIX}{name.upper()}" for name in (*Settings.model_fields, "name")}  # `MILLRACE_NAME` stands for any
    return [
        name
        for name in re.findall(r"\bMILLRACE_[A-Z_]+", text)
        if name.removesuffix("_FILE") not in names and name != PREFIX and not name.startswith(_TESTS_AND_CI)
    ]


def command_problem(words: list[str]) -> str:
    """Return what the command line refuses in `millrace WORDS`: a verb or an option that does not exist."""
    words = [word for word in words if "…" not in word and word != "..."]
    context: Any = None  # Any: typer ships click's classes without types
    command: Any = _COMMAND
    try:
        while hasattr(command, "commands"):
            context = command.context_class(command, info_name="millrace", parent=context)
            parser = command.make_parser(context)
            _, rest, _ = parser.parse_args(args=list(words))
            if not rest:
                return ""
            found = command.get_command(context, rest[0])
            if found is None:
                return f"`millrace {' '.join(words)}`: there is no verb {rest[0]!r}"
            command, words = found, rest[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
        command.make_parser(context).parse_args(args=list(words))
    except Exception as error:  # click's, of a module that typer does not name
        if words == ["--help"] or "--help" in words:
            return ""
        return f"`{command.name} {' '.join(words)}`: {getattr(error, 'message', error)}"
    return ""


def millrace_commands(script: str) -> Iterator[list[str]]:
    """Yield the arguments of each `millrace …` of a script."""
    script = re.sub(r"(?m)(^|\s)#.*$", r"\1", script)
    script = re.sub(
        r"<<-?\s*['\"]?(\w+)['\"]?(.*?)\n(.*?)\n\s*\1\b", r"\2\n", script, flags=re.DOTALL
    )  # here-documents
    script = script.replace("\\\n", " ").replace("$(", "\n").replace("`", "\n")
    lexer = shlex.shlex(script.replace("\n", " ; "), posix=True, punctuation_chars="();<>|&")
    lexer.commenters = ""
    lexer.wordchars += "{}[],…:@%+"
    words: list[str] = []
    for word in [*_words(lexer), ";"]:
        if not _OPERATOR.fullmatch(word):
            words.append(word)
            continue
        yield from _command_of(words)
        words = []


def _words(lexer: shlex.shlex) -> Iterator[str]:
    try:
        yield from lexer
    except ValueError:  # a quote that the replacements above have cut; bash itself has parsed the script
        return


def _command_of(words: list[str]) -> Iterator[list[str]]:
    for number, word in enumerate(words):
        is_command = word == "millrace" or word.endswith("/bin/millrace")
        before = [each for each in words[:number] if not re.match(r"\w+=", each)]
        if is_command and (not before or before[-1] in _BEFORE_A_COMMAND):
            rest = words[number + 1 :]
            yield rest[: next((n for n, each in enumerate(rest) if each == "#"), len(rest))]
            return


def _shell(code: str, folder: Path) -> str:
    if error := syntax_error(code):
        return error
    return next((text for words in millrace_commands(code) if (text := command_problem(words))), "")


def _transcript(code: str, folder: Path) -> str:
    try:
        commands = [command for _, command, _ in transcript(code)]
    except AssertionError as error:
        return str(error)
    return next((text for command in commands if (text := _shell(command, folder))), "")


def _python(code: str, folder: Path) -> str:
    try:
        ast.parse(code)
    except SyntaxError as error:
        return f"line {error.lineno} of the block: {error.msg}"
    return ""


def _json(code: str, folder: Path) -> str:
    try:
        documents = [json.loads(code)]
    except ValueError as error:
        try:
            documents = [json.loads(line) for line in code.splitlines() if line.strip()]
        except ValueError:
            return f"neither JSON ({error}) nor JSON Lines"
    return next((text for each in documents if isinstance(each, dict) and (text := _body_problem(each))), "")


def _body_problem(document: dict[str, Any]) -> str:  # Any: JSON
    """Check what is plainly a line of a batch, or the body of a request."""
    try:
        if {"custom_id", "method", "url", "body"} <= document.keys():
            line = parse_body(BatchLine, document)
            parse_body(ENDPOINTS[line.url].body, line.body)
        elif {"model", "messages"} <= document.keys():
            parse_body(ENDPOINTS[CHAT_ENDPOINT].body, document)
        elif {"model", "input", "instructions"} <= document.keys():
            parse_body(ENDPOINTS[RESPONSES_ENDPOINT].body, document)
        elif document.keys() == {"model", "input"}:
            parse_body(ENDPOINTS[EMBEDDINGS_ENDPOINT].body, document)
    except Exception as error:
        return f"the server refuses it: {error}"
    return ""


def _yaml(code: str, folder: Path) -> str:
    try:
        documents = list(yaml.safe_load_all(code))
    except yaml.YAMLError as error:
        return f"no YAML: {error}"
    for document in documents:
        if isinstance(document, dict) and "name" in document and document.keys() & {"backend", "parameters"}:
            path = folder / "model.yaml"
            path.write_text(code)
            try:
                load_model(path)
            except ConfigError as error:
                return str(error)
    return ""


def _toml(code: str, folder: Path) -> str:
    try:
        table = tomllib.loads(code)
    except tomllib.TOMLDecodeError as error:
        return f"no TOML: {error}"
    unknown = table.keys() - Settings.model_fields.keys() if TOML_FILE in code else set()
    return f"{', '.join(sorted(unknown))}: no settings" if unknown else ""


def _javascript(code: str, folder: Path) -> str:
    if shutil.which("node") is None:
        return ""
    (folder / "block.mjs").write_text(code)
    return subprocess.run(
        ["node", "--check", str(folder / "block.mjs")], capture_output=True, text=True, check=False
    ).stderr
