"""llguidance's compiler and its complaints: the same limits and the same words in the engine and in its sandbox.

A matcher never raises; it goes into an error state and stays there. Here that becomes an InvalidConstraint, in words for
the person who wrote the constraint.
"""

from __future__ import annotations

import re
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.errors import InvalidConstraint

MAX_LEXER_STATES: Final = 30_000  # about 0.4 kB each

# One step on the loop's thread stays within some milliseconds: 100k of fuel take about 8 ms, 5k items one.
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
_MAX_WORDS: Final = 200
# parser states, and places in a grammar of ours around a schema of the writer's
_NOT_FOR_THE_WRITER: Final = r'; following special tokens.*|\(at "\\n".*|at \d+\(\d+\): failed to compile JSON schema: '


def compile_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at its start whose first steps are known to work; raises InvalidConstraint."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidConstraint(explain(matcher.get_error()))
    _try_first_steps(matcher.deep_copy())
    return matcher


def _try_first_steps(matcher: LLMatcher) -> None:
    """What nothing matches, and what is forced without end, shows in a mask, a jump and another mask."""
    if not (matcher.is_accepting() or any(matcher.compute_bitmask())):
        raise InvalidConstraint(NOTHING_MATCHES)
    matcher.consume_tokens(matcher.compute_ff_tokens())
    if not matcher.is_stopped():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise InvalidConstraint(explain(matcher.get_error()))


def explain(error: str) -> str:
    """llguidance's complaint in one sentence: no parser state, and no more of the constraint than a name."""
    if found := re.search(r"Unimplemented keys: \[([^\]]*)", error):
        return f"The schema has keywords that are not supported: {found[1].replace(chr(34), '')[:_MAX_WORDS]}."
    if found := re.search(r"Unsatisfiable schema: ([^\n]*)", error):
        return f"Nothing can match the schema: {found[1][:_MAX_WORDS]}."
    if "NoExtension" in error:
        return NOTHING_MATCHES
    if "oneOf constraints are not supported" in error:
        return "'oneOf' is supported only where two of its schemas can never match together; use 'anyOf'."
    if re.search(r"too many|Too many|limit|fuel|too large|too big", error):
        return TOO_COMPLEX
    if found := re.search(r"regex parse error:.*?\nerror: ([^\n]*)", error, re.DOTALL):
        return f"The regex is not valid: {found[1][:_MAX_WORDS]}."
    first = re.sub(_NOT_FOR_THE_WRITER, "", error.split("\n", 1)[0]).strip()
    return f"The constraint cannot be used: {first[:_MAX_WORDS]}"
