"""Count private words in the docstrings and comments of each room: `python -m tools.wording [room or file …]`."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from pathlib import Path

ROOMS = ("api", "bench", "cli", "core", "db", "engine", "mapping", "migrations", "tests", "tools", "workers")
LIMITS = {  # uses per 1000 words
    "persons": (2.0, r"\b(?:who|whom|whose|whoever|nobody|somebody|anybody|everybody)\b"),
    "speech": (4.0, r"\b(?:tells?|told|telling|says?|said|saying|hears?|heard|hearing|knows?|knew|known|knowing)\b"),
    "riddles": (2.0, r"(?:^|[.:;!?]\s+)(?:What|Who|Whoever|Whom|Where|How|Those)\b(?![^.?]*\?)"),
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(path: Path) -> list[str]:
    """Docstrings and comments of a file, without code in backticks and comments for tools."""
    docs = [ast.get_docstring(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, DOCUMENTED)]
    with tokenize.open(path) as file:
        comments = [
            t.string.lstrip("# ") for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT
        ]
    return [re.sub(r"`[^`]*`", "", text) for text in docs + comments if text and not text.startswith(("noqa", "type:"))]


def main(places: list[str]) -> int:
    """Print the uses per 1000 words of each room or file; 1 when a room is over a limit."""
    is_over = False
    for place in places or ROOMS:
        paths = [Path(place)] if place.endswith(".py") else sorted(Path(place).rglob("*.py"))
        text = "\n".join(". " + part for path in paths for part in prose(path))
        num_words = len(re.findall(r"\w+", text))
        rates = {
            n: 1000 * len(re.findall(p, text, re.IGNORECASE if n != "riddles" else 0)) / max(num_words, 1)
            for n, (_, p) in LIMITS.items()
        }
        is_over |= not place.endswith(".py") and any(rates[name] > limit for name, (limit, _) in LIMITS.items())
        print(f"{place:40} {num_words:6} words " + "  ".join(f"{name} {rate:5.1f}" for name, rate in rates.items()))
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
