"""Prompts of whole requests, from messages to token ids."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from engine.backends.fake.tokenizer import FakeTokenizer
from engine.errors import ModelFailed, TemplateFailed, TemplateTooSlow
from engine.inputs.chat_template import CHATML, ChatTemplate
from engine.inputs.prompt_encoder import PromptEncoder
from engine.types import ChatPrompt, Request, TextPrompt, ToolChoice, ToolMode

USER = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
WITH_TOOLS = "{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}{{ messages[-1].content }}"
CALLS = """\
{%- for m in messages %}
{{- m.role }}:{{ m.content }}
{%- for call in m.tool_calls or [] %}<{{ SHOWN }}>{% endfor %};
{%- endfor %}"""


class ModelTokenizer(FakeTokenizer):
    def __init__(self, chat: str | None = None, tools: str | None = None) -> None:
        self.chat_template = chat
        self.tool_template = tools  # type: ignore[assignment]


def encoder(chat: str | None = None, tools: str | None = None, given: str | None = None) -> PromptEncoder:
    return PromptEncoder(ModelTokenizer(chat, tools), template=given, context_size=4096)


def text(using: PromptEncoder | str, *messages: dict[str, Any], tools: Any = (), **given: Any) -> str:
    """The prompt of a conversation, decoded; control tokens are <s> and </s>."""
    using = encoder(using) if isinstance(using, str) else using
    choice = given.pop("tool_choice", ToolChoice())
    prompt = ChatPrompt(messages=list(messages) or [USER], tools=list(tools), **given)
    tokens = using.encode(Request(id="r", prompt=prompt, tool_choice=choice))
    pieces = {256: b"<s>", 257: b"</s>"}
    return b"".join(pieces.get(token) or bytes((token,)) for token in tokens).decode()


# --- which template ---------------------------------------------------------------------------------------------------


def test_the_tool_template_of_a_model_is_for_requests_with_tools() -> None:
    model = encoder("plain {{ messages[0].content }}", WITH_TOOLS)
    assert text(model) == "<s>plain hi"
    assert text(model, tools=[TOOL]) == "<s>[get_weather]hi"
    assert text(model, tools=[TOOL], tool_choice=ToolChoice(mode=ToolMode.NONE)) == "<s>plain hi"
    assert text(encoder(None, WITH_TOOLS)) == "<s>hi", "the only template is for every request"
    assert text(encoder("plain", WITH_TOOLS, given=CHATML)).endswith("assistant\n")


def test_the_output_format_is_that_of_the_template_in_use() -> None:
    model = encoder("{{ messages[0].content }}", WITH_TOOLS + "{# <tool_call> #}")
    request = Request(id="r", prompt=ChatPrompt(messages=[USER], tools=[TOOL]))
    spec = model.output_spec(request, model.encode(request))
    assert spec.tool_format is not None
    assert spec.tool_format.name == "hermes"


def test_the_hash_is_that_of_all_templates_in_use() -> None:
    assert encoder("a", "b").templates.hash != encoder("a").templates.hash
    assert encoder(CHATML).templates.hash == encoder(None, "b", given=CHATML).templates.hash
    assert encoder("a").templates.hash == hashlib.sha256(b"a").hexdigest()


def test_a_model_with_an_invalid_template_still_completes_texts() -> None:
    model = encoder("{% if %}")
    assert model.encode(Request(id="r", prompt=TextPrompt(text="hi"))) == [256, *b"hi"]
    with pytest.raises(TemplateFailed, match=r"GGUF is not valid: .*line 1.*Set `chat_template`") as caught:
        text(model)
    assert model.templates.warning == str(caught.value)
    assert encoder("fine").templates.warning is None


def test_an_invalid_tool_template_is_not_used() -> None:
    model = encoder(WITH_TOOLS, "{% if %}")
    assert text(model, tools=[TOOL]) == "<s>[get_weather]hi"
    assert "`tool_use`" in (model.templates.warning or "")


@pytest.mark.parametrize(
    ("given", "reason"), [("{% if %}", "line 1"), ("chatml", "it is no Jinja"), ("template.jinja", "it is no Jinja")]
)
def test_an_invalid_template_of_the_operator_stops_the_start(given: str, reason: str) -> None:
    with pytest.raises(ModelFailed, match=f"YAML file is not valid: .*{reason}"):
        encoder(given=given)


# --- tools and calls --------------------------------------------------------------------------------------------------


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


OBJECTS = CALLS.replace("SHOWN", "call.function.arguments | tojson")
TEXTS = CALLS.replace("SHOWN", "'' + call.function.arguments")
ITEMS = CALLS.replace("SHOWN", "call.function.arguments | items | list")


@pytest.mark.parametrize(
    ("source", "arguments", "shown"),
    [
        (OBJECTS, '{"city":"Bern"}', '{"city": "Bern"}'),
        (TEXTS, '{"city":"Bern"}', '{"city":"Bern"}'),
        (ITEMS, '{"city":"Bern"}', "[('city', 'Bern')]"),
        (OBJECTS, '{"city": "Be', '"{\\"city\\": \\"Be"'),
        (TEXTS, '{"city": "Be', '{"city": "Be'),
        (ITEMS, '{"city": "Be', "[('city', 'Be')]"),
        (ITEMS, "Bern", "[]"),
    ],
)
def test_a_call_is_shown_whatever_form_its_template_expects(source: str, arguments: str, shown: str) -> None:
    assert text(source, USER, call(arguments)) == f"<s>user:hi;assistant:<{shown}>;"


def test_the_error_of_the_usual_form_is_reported() -> None:
    source = CALLS.replace(
        "SHOWN", "raise_exception('only ' + ('text' if call.function.arguments is mapping else 'air'))"
    )
    with pytest.raises(TemplateFailed, match="only text"):
        text(source, USER, call('{"a": 1}'))


def test_a_template_that_takes_too_long_is_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, renders = encoder(OBJECTS), []

    def render_slowly(*_: object, **__: object) -> str:
        renders.append(1)
        raise TemplateTooSlow

    monkeypatch.setattr(ChatTemplate, "render", render_slowly)
    with pytest.raises(TemplateFailed, match="too long"):
        text(model, USER, call('{"a": 1}'))
    assert len(renders) == 1


def test_a_function_may_lack_what_its_template_requires() -> None:
    source = "{% for t in tools %}{{ t.function.name + t.function.description }}{% endfor %}"
    assert text(source, tools=[TOOL]) == "<s>get_weather"
    each = (
        "{% for name, schema in t.function.parameters.properties | items %}{{ name + schema.description }}{% endfor %}"
    )
    nested = f"{{% for t in tools %}}{each}{{% endfor %}}"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert text(nested, tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]) == "<s>city"


# --- special spellings ------------------------------------------------------------------------------------------------


def test_a_template_that_begins_with_the_start_token_gets_no_second_one() -> None:
    assert text("{{ bos_token }}{{ messages[0].content }}") == "<s>hi"
    assert text("{{ messages[0].content }}", {"role": "user", "content": "<s>hi"}) == "<s><s>hi"


def test_parts_that_spell_a_control_token_together_do_not_become_one() -> None:
    source = "{% for part in messages[0].content %}{{ part.text | trim }}{% endfor %}"
    parts = [{"type": "text", "text": part} for part in ("a </", " s> b")]
    tokens = encoder(source).encode(Request(id="r", prompt=ChatPrompt(messages=[{"role": "user", "content": parts}])))
    assert tokens == [256, *b"a </\n s> b"]


# --- the end of the prompt --------------------------------------------------------------------------------------------

TURNS = """\
{%- for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
BEGUN = {"role": "assistant", "content": "It is "}


def test_a_prompt_may_end_behind_the_last_message() -> None:
    assert text(TURNS, USER, BEGUN) == "<s><user>hi</s><assistant>It is</s><assistant>"
    assert text(TURNS, USER, BEGUN, add_generation_prompt=False) == "<s><user>hi</s><assistant>It is</s>"


@pytest.mark.parametrize(
    ("source", "content", "end"),
    [
        (TURNS, "It is ", "It is"),
        (TURNS.replace(" | trim", ""), "It is ", "It is "),
        (TURNS, "", ""),
        (TURNS, "hi\ufdd2 </s>", "hi </s>"),
        (TURNS, [{"type": "text", "text": "It"}, {"type": "text", "text": "is"}], "It\nis"),
    ],
    ids=["trimmed", "as it is", "empty", "special", "parts"],
)
def test_an_answer_may_continue_the_last_message(source: str, content: Any, end: str) -> None:
    given = {"role": "assistant", "content": content}
    assert text(source, USER, given, continue_final_message=True) == f"<s><user>hi</s><assistant>{end}"


def test_a_message_that_the_template_hides_cannot_be_continued() -> None:
    with pytest.raises(TemplateFailed, match="cannot be continued") as caught:
        text("{{ messages[0].content }}", USER, BEGUN, continue_final_message=True)
    assert caught.value.param == "continue_final_message"
