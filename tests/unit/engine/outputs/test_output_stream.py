"""Output streams: the deltas add up, however the bytes are divided into tokens; marks are never shown."""

from __future__ import annotations

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.backends.fake.tokenizer import FakeTokenizer
from engine.outputs.output_format import OutputFormat
from engine.outputs.output_stream import OutputDelta, OutputSpec, OutputStream, merge_deltas
from engine.outputs.reasoning import ReasoningTags, detect_reasoning_tags
from engine.outputs.tool_formats import HERMES
from engine.types import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Request,
    TextPrompt,
    ToolChoice,
    ToolMode,
)
from tests.unit.engine.outputs.test_detokenizer import pieces_of

THINK = ReasoningTags("<think>", "</think>")
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone":"é"}}\n</tool_call>'


def spec(**given: object) -> OutputSpec:
    values: dict[str, object] = {"reasoning_tags": THINK, "tool_format": HERMES, "tool_names": ("now",)}
    return OutputSpec(**{**values, **given})  # type: ignore[arg-type]


def run(stream: OutputStream, pieces: list[bytes]) -> tuple[str, str, list[tuple[str, str]]]:
    """Return all output of a stream, after a check against its properties."""
    deltas = [stream.push(0, piece) for piece in pieces]
    deltas.append(stream.finish())
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    assert (content, reasoning) == (stream.text, stream.reasoning)
    arguments: dict[int, str] = {}
    for delta in deltas:
        for call in delta.tool_calls:
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
    assert list(arguments.values()) == [call.arguments for call in stream.tool_calls]
    return content, reasoning, [(call.name, call.arguments) for call in stream.tool_calls]


def test_a_plain_answer_is_its_text() -> None:
    stream = OutputStream(OutputSpec(stop=("END",)))
    assert stream.push(1, b"a<think>") == OutputDelta("a<think>")
    assert stream.push(2, b" E").content == " "
    assert stream.push(3, b"ND").is_empty
    assert stream.is_stopped
    assert stream.finish().is_empty
    assert (stream.text, stream.reasoning, stream.tool_calls) == ("a<think> ", "", [])


def test_reasoning_content_and_calls_are_split_byte_by_byte() -> None:
    text = f"<think>\nIs it late? <tool_call> knows.\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    expected = ("Let me see.", "Is it late? <tool_call> knows.", [("now", '{"zone":"é"}')] * 2)
    assert run(OutputStream(spec()), [bytes([byte]) for byte in text.encode()]) == expected
    assert run(OutputStream(spec()), [text.encode()]) == expected


def test_an_answer_may_begin_inside_the_reasoning_that_the_prompt_opened() -> None:
    assert run(OutputStream(spec(starts_in_reasoning=True)), [b"hm", b" hm\n</th", b"ink>\n\nYes"]) == (
        "Yes",
        "hm hm",
        [],
    )
    assert run(OutputStream(spec(starts_in_reasoning=True)), [b"cut off </thi"]) == ("", "cut off </thi", [])


def test_reasoning_comes_first_or_is_content() -> None:
    assert run(OutputStream(spec()), [b"The tag <think>x</think> is"]) == ("The tag <think>x</think> is", "", [])
    assert run(OutputStream(spec()), [b" <thi"]) == (" <thi", "", [])


def test_marks_that_are_control_tokens_without_bytes_are_found() -> None:
    marks = {7: b"<think>", 8: b"</think>", 9: b"<tool_call>", 10: b"</tool_call>"}
    stream = OutputStream(spec(marks=marks))
    tokens = [(7, b""), (0, b"hm"), (8, b""), (9, b""), (0, b'\n{"name": "now", "arguments": {}}\n'), (10, b"")]
    for token, piece in tokens:
        stream.push(token, piece)
    assert stream.finish().is_empty
    assert (stream.text, stream.reasoning) == ("", "hm")
    assert [(call.name, call.arguments) for call in stream.tool_calls] == [("now", "{}")]
    assert stream.num_reasoning_tokens == 3


def test_control_tokens_out_of_place_show_nothing() -> None:
    stream = OutputStream(spec(marks={7: b"<think>", 8: b"</think>"}))
    for token, piece in [(7, b""), (0, b"hm"), (8, b""), (0, b"so"), (8, b""), (7, b""), (0, b" it is")]:
        stream.push(token, piece)
    stream.finish()
    assert (stream.text, stream.reasoning) == ("so it is", "hm")


def test_reasoning_tokens_are_counted_with_their_tags() -> None:
    stream = OutputStream(spec())
    counts = []
    for piece in (b"<th", b"ink>", b"a", b"b", b"</think>", b"\n\n", b"c", b"d"):
        stream.push(0, piece)
        counts.append(stream.num_reasoning_tokens)
    assert counts == [0, 2, 3, 4, 5, 5, 5, 5]
    unthinking = OutputStream(spec())
    unthinking.push(0, b"hello")
    assert unthinking.num_reasoning_tokens == 0


def test_stop_strings_are_looked_for_in_content_only() -> None:
    text = b'<think>now</think>I <tool_call>\n{"name": "now", "arguments": {"a":"now"}}\n</tool_call>\nnow'
    content, reasoning, calls = run(OutputStream(spec(stop=("now",))), pieces_of(text, list(range(0, 99, 3))))
    assert (content, reasoning, calls) == ("I\n", "now", [("now", '{"a":"now"}')])


def test_merged_deltas_have_one_delta_for_each_call() -> None:
    stream = OutputStream(spec())
    deltas = [stream.push(0, bytes([byte])) for byte in f"<think>hm</think>Yes. {CALL}\n{CALL}".encode()]
    joined = merge_deltas(deltas)
    assert (joined.content, joined.reasoning) == ("Yes.", "hm")
    assert [(call.index, call.arguments) for call in joined.tool_calls] == [(0, '{"zone":"é"}'), (1, '{"zone":"é"}')]
    assert [(call.id, call.name) for call in joined.tool_calls] == [(each.id, "now") for each in stream.tool_calls]
    assert merge_deltas([]).is_empty


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "</th",
        "<to",
        "<tool_call>",
        '{"name": "now", "arguments": {',
        "}",
        "}\n</tool_call>",
        *"\n éaEND",
    ]
)


@given(st.lists(FRAGMENTS, max_size=12), st.lists(st.integers(0, 120), max_size=30), st.booleans(), st.booleans())
def test_the_answer_does_not_depend_on_how_it_falls_into_tokens(
    fragments: list[str], cuts: list[int], starts_inside: bool, can_stop: bool
) -> None:
    data = "".join(fragments).encode()
    made = spec(starts_in_reasoning=starts_inside, stop=("END",) if can_stop else ())
    bytewise = run(OutputStream(made), [bytes([byte]) for byte in data])
    assert run(OutputStream(made), pieces_of(data, cuts)) == bytewise
    if not can_stop:
        assert run(OutputStream(made), [data]) == bytewise


@given(st.text("ab <>/\n😀", max_size=30), st.text("cd <>/\n", max_size=30))
def test_reasoning_and_answer_lose_only_the_white_space_between_them(reasoning: str, answer: str) -> None:
    data = f"<think>{reasoning}</think>{answer}".encode()
    content, found, _ = run(OutputStream(spec()), [bytes([byte]) for byte in data])
    assert (content, found) == (answer.lstrip(), reasoning.strip())


@given(st.binary(max_size=40))
def test_any_bytes_without_a_mark_are_text(data: bytes) -> None:
    text = data.decode(errors="replace").replace("\0", "")
    assume(THINK.open not in text and "<tool_call>" not in text)
    content, _, _ = run(OutputStream(spec()), [bytes([byte]) for byte in data])
    assert content == text


# --- detection of a model's output format -----------------------------------------------------------------------------


class MarkTokenizer(FakeTokenizer):
    """The fake's bytes, with the reasoning tags as control tokens."""

    num_vocab = 260
    special_texts = ("<s>", "</s>", "<think>", "</think>")  # type: ignore[assignment]

    def encode(
        self, text: str, *, special: bool, add_bos: bool, add_end: bool = False, continues: bool = False
    ) -> list[int]:
        if special and text in ("<think>", "</think>"):
            return [258 + (text == "</think>")]
        return super().encode(text, special=special, add_bos=add_bos, add_end=add_end, continues=continues)


TEMPLATE = "{{ tools }}{{ messages[0].content }}<tool_call></think>"
TOOLS = [{"type": "function", "function": {"name": "now"}}]


def request(**given: object) -> Request:
    prompt = ChatPrompt(messages=[{"role": "user", "content": "x"}], tools=TOOLS)
    return Request(**{"id": "r", "prompt": prompt, "stop": ["a"], **given})  # type: ignore[arg-type]


def test_a_template_without_reasoning_tags_has_none() -> None:
    assert detect_reasoning_tags("{{ messages }}") is None
    assert detect_reasoning_tags("… [THINK] …") == ReasoningTags("[THINK]", "[/THINK]")
    assert OutputFormat(FakeTokenizer(), "{{ messages }}").spec(request(), [1]).reasoning_tags is None


def test_an_answer_begins_with_reasoning_if_the_prompt_ends_in_an_open_tag() -> None:
    answers = OutputFormat(MarkTokenizer(), TEMPLATE)
    assert answers.starts_in_reasoning([*b"<|assistant|>", 258, *b"\n"])
    assert answers.starts_in_reasoning(list(b"hi <think>\n\n"))
    assert not answers.starts_in_reasoning([258, *b"\n", 259, *b"\n"])
    assert not answers.starts_in_reasoning([258, *b" who?"])
    assert answers.spec(request(), [258]).starts_in_reasoning


def test_a_prompt_that_has_closed_its_thought_is_followed_by_the_answer_alone() -> None:
    answers = OutputFormat(MarkTokenizer(), TEMPLATE)
    answer = Constraint(kind=ConstraintKind.JSON_OBJECT)
    plain = msgspec.structs.replace(request(constraint=answer), prompt=ChatPrompt(messages=[]))
    assert answers.spec(plain, [258, *b"\n", 259, *b"\n\n"]).constraint == answer
    assert answers.spec(plain, list(b"<think></think>\n")).constraint == answer
    assert answers.spec(plain, [*b"</think>", *b"\nmore"]).constraint != answer
    required = answers.spec(request(tool_choice=ToolChoice(mode=ToolMode.REQUIRED)), [258, 259]).constraint
    assert required is not None
    assert "OPENING" not in required.text


def test_the_end_of_a_thought_is_known_as_a_token_or_spelled_out() -> None:
    answer = Constraint(kind=ConstraintKind.JSON_OBJECT)
    plain = msgspec.structs.replace(request(constraint=answer), prompt=ChatPrompt(messages=[]))
    for tokenizer, end in ((MarkTokenizer(), (259,)), (FakeTokenizer(), tuple(b"</think>"))):
        made = OutputFormat(tokenizer, TEMPLATE).spec(plain, [1]).constraint
        assert made is not None
        assert made.thought_end == end
    assert OutputFormat(MarkTokenizer(), TEMPLATE).spec(plain, [258, 259]).constraint == answer


def test_a_named_tool_is_called_once() -> None:
    answers = OutputFormat(MarkTokenizer(), TEMPLATE)
    once = answers.spec(request(tool_choice=ToolChoice(mode=ToolMode.REQUIRED), parallel_tool_calls=False), [1])
    named = answers.spec(request(tool_choice=ToolChoice(mode=ToolMode.REQUIRED, name="now")), [1])
    several = answers.spec(request(tool_choice=ToolChoice(mode=ToolMode.REQUIRED)), [1])
    assert named.constraint == once.constraint != several.constraint


def test_a_request_with_tools_gets_a_grammar_a_parser_and_the_marks() -> None:
    made = OutputFormat(MarkTokenizer(), TEMPLATE).spec(request(), [1], ["b"])
    assert made.stop == ("a", "b")
    assert made.marks == {258: b"<think>", 259: b"</think>"}
    assert (made.tool_format, made.tool_names) == (HERMES, ("now",))
    assert made.constraint is not None
    assert made.constraint.kind is ConstraintKind.GRAMMAR
    assert "<[258]>" in made.constraint.text


def test_without_tools_a_constraint_only_allows_reasoning_before_it() -> None:
    answer = Constraint(kind=ConstraintKind.REGEX, text="yes|no")
    none = request(tool_choice=ToolChoice(mode=ToolMode.NONE), constraint=answer)
    thinking = OutputFormat(MarkTokenizer(), TEMPLATE).spec(none, [1])
    assert thinking.tool_format is None
    assert thinking.constraint is not None
    assert "/yes|no/" in thinking.constraint.text
    assert OutputFormat(FakeTokenizer(), "{{ messages }}").spec(none, [1]).constraint is answer


def test_raw_text_has_no_reasoning_and_no_tools() -> None:
    made = OutputFormat(MarkTokenizer(), TEMPLATE).spec(request(prompt=TextPrompt(text="x")), [258])
    assert made == OutputSpec(stop=("a",))
