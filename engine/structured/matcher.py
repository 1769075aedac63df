"""Matcher: compile a grammar with llguidance, with the same limits and error messages in the engine and in its sandbox.

A matcher never raises; it enters an error state and stays in it. `compile_matcher` turns that into an InvalidConstraint with
a message for the author of the constraint.
"""

from __future__ import annotations

import re
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.errors import InvalidConstraint

MAX_LEXER_STATES: Final = 30_000  # about 0.4 kB each

# One step on the loop's thread takes a few milliseconds at most: 100k of fuel about 8 ms, 5k items 1 ms.
LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=5_000,
    max_lexer_states=MAX_LEXER_STATES,
    max_grammar_size=200_000,
    verbose_errors=False,
)

NOTHING_MATCHES: Final = "Nothing can match this constraint."
TOO_COMPLEX: Final = "The constraint is too complex."
_MAX_CHARACTERS: Final = 200
# parser states, and places in the internal grammar around a tool's schema
_INTERNAL_DETAILS: Final = r'; following special tokens.*|\(at "\\n".*|at \d+\(\d+\): failed to compile JSON schema: '


def compile_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compile a matcher and try its first steps on a copy; raises InvalidConstraint."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidConstraint(explain(matcher.get_error()))
    _try_first_steps(matcher.deep_copy())
    return matcher


def _try_first_steps(matcher: LLMatcher) -> None:
    """Find grammars that match nothing or force tokens without end, by a mask, a jump and another mask."""
    if not (matcher.is_accepting() or any(matcher.compute_bitmask())):
        raise InvalidConstraint(NOTHING_MATCHES)
    matcher.consume_tokens(matcher.compute_ff_tokens())
    if not matcher.is_stopped():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise InvalidConstraint(explain(matcher.get_error()))


def explain(error: str) -> str:
    """Reduce llguidance's error to one sentence, without parser states and without more of the constraint than a name."""
    if found := re.search(r"Unimplemented keys: \[([^\]]*)", error):
        return f"The schema has keywords that are not supported: {found[1].replace(chr(34), '')[:_MAX_CHARACTERS]}."
    if found := re.search(r"Unsatisfiable schema: ([^\n]*)", error):
        return f"Nothing can match the schema: {found[1][:_MAX_CHARACTERS]}."
    if "NoExtension" in error:
        return NOTHING_MATCHES
    if "oneOf constraints are not supported" in error:
        return "'oneOf' is supported only where two of its schemas can never match together; use 'anyOf'."
    if re.search(r"too many|Too many|limit|fuel|too large|too big", error):
        return TOO_COMPLEX
    if found := re.search(r"regex parse error:.*?\nerror: ([^\n]*)", error, re.DOTALL):
        return f"The regex is not valid: {found[1][:_MAX_CHARACTERS]}."
    first = re.sub(_INTERNAL_DETAILS, "", error.split("\n", 1)[0]).strip()
    return f"The constraint cannot be used: {first[:_MAX_CHARACTERS]}"
