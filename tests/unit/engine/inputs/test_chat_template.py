from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from engine.backends.fake.tokenizer import FakeTokenizer
from engine.errors import InvalidPrompt, PromptTooLong, TemplateFailed
from engine.inputs import chat_template as template
from engine.inputs.call_forms import call_forms
from engine.inputs.chat_template import CHATML, ChatTemplate
from engine.inputs.prompt_encoder import PromptEncoder
from engine.types import ChatPrompt, Request, SamplingParams, TextPrompt, ToolChoice, ToolMode

HELLO = [{"role": "user", "content": "hello"}]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <now> & 'soon', in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def make(source: str | None, max_characters: int = 10_000) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", max_characters=max_characters)


def test_a_model_without_a_template_gets_chatml_and_no_invented_system_block() -> None:
    assert make(None).render(HELLO, {}) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert make(CHATML).render(HELLO, {}) == make(None).render(HELLO, {})


def test_templates_get_the_tokens_the_date_and_their_own_arguments() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y')|length }}{{ enable_thinking }}"
    assert make(source).render(HELLO, {"enable_thinking": False}) == "<s></s>4False"


def test_a_prompt_longer_than_any_context_is_too_long_and_not_the_templates_fault() -> None:
    loop = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fits, endless = [{"role": "user", "content": "x" * 50}] * 2, [{"role": "user", "content": "x" * 50}] * 100_000
    assert len(make(loop, max_characters=100).render(fits, {})) == 100
    with pytest.raises(PromptTooLong, match="more than 100 characters") as caught:
        make(loop, max_characters=100).render(endless, {})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    encoder = PromptEncoder(FakeTokenizer(), template=None, context_size=128)
    with pytest.raises(PromptTooLong, match="characters"):
        encoder.encode(Request(id="r", prompt=ChatPrompt(messages=[{"role": "user", "content": "word " * 200_000}])))


def test_a_template_that_takes_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_RENDER_SECONDS", -1.0)
    with pytest.raises(TemplateFailed, match="takes too long"):
        make(None).render(HELLO, {})


def test_a_template_without_tools_rejects_them_clearly() -> None:
    with pytest.raises(TemplateFailed, match="tool_choice") as caught:
        make(None).render(HELLO, {}, TOOLS)
    assert caught.value.param == "tools"


def test_json_is_not_escaped_for_html() -> None:
    assert make("{{ messages[0] | tojson }}").render([{"role": "user", "content": "a<b & 'ö'"}], {}) == (
        '{"role": "user", "content": "a<b & \'ö\'"}'
    )


def test_a_turn_marked_for_training_is_rendered_and_keeps_its_variables_to_itself() -> None:
    source = """\
{% for message in messages %}
{% generation %}
{% set seen = message.content %}
[{{ seen }}]
{% endgeneration %}
{% endfor %}
{{ seen is defined }}"""
    assert make(source).render([*HELLO, *HELLO], {}) == "[hello]\n[hello]\nFalse"


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools is defined %}tools{% endif %}",
        "{% if tools is not none %}tools{% endif %}",
        "{% if tools != None %}tools{% endif %}",
        "{% if tools %}tools{% endif %}",
        "{% if tools | length > 0 %}tools{% endif %}",
        "{% for tool in tools %}tools{% endfor %}",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{% if tools is not none %}tools{% endif %}",
    ],
)
def test_without_tools_any_test_for_them_fails(source: str) -> None:
    assert make(source).render(HELLO, {}) == ""
    assert make(source).render(HELLO, {}, TOOLS) == "tools"


def test_absent_tools_are_null_in_json() -> None:
    assert make("{{ tools | tojson }}").render(HELLO, {}) == "null"


def test_json_has_the_parameters_of_transformers() -> None:
    source = "{{ {'b': 'ü', 'a': [1]} | tojson(ensure_ascii=True, indent=1, separators=(',', ':'), sort_keys=True) }}"
    assert make(source).render(HELLO, {}) == '{\n "a":[\n  1\n ],\n "b":"\\u00fc"\n}'


FEATURES = {
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}": "user",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "2",
    "{% for key, value in messages[0] | items %}{{ key }}={{ value }} {% endfor %}": "role=user content=hello ",
    "{{ messages[0].content.strip().split('l')[0].upper().startswith('HE') }}": "True",
    "{{ {1: 'one'}[1] }}{{ messages[0]['content'][1:3] }}{{ messages[9] is defined }}": "oneelFalse",
    "{{ date_string if date_string is defined else 'no date' }}": "no date",
    "{% macro say(m) %}<{{ m.content }}>{% endmacro %}{{ say(messages[0]) }}": "<hello>",
}


@pytest.mark.parametrize(("source", "rendered"), FEATURES.items())
def test_templates_may_use_what_transformers_offers(source: str, rendered: str) -> None:
    assert make(source).render([*HELLO, *HELLO], {}) == rendered


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ [][-1].b }}"]
)
def test_any_failure_of_a_template_is_about_the_messages(source: str) -> None:
    with pytest.raises(TemplateFailed, match="does not accept") as caught:
        make(source).render(HELLO, {})
    assert caught.value.param == "messages"


def test_an_error_raised_by_a_template_keeps_its_message() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateFailed, match="roles must alternate") as caught:
        make(source).render(HELLO, {})
    assert caught.value.param == "messages"


ATTACKS = {
    "attributes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing a list": "{{ messages.append(1) }}",
    "format strings": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a text without end": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "a huge range": "{% for a in range(10**9) %}{% endfor %}",
}


@pytest.mark.parametrize("source", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_hostile_template_only_hurts_its_own_requests(source: str) -> None:
    with pytest.raises((TemplateFailed, PromptTooLong)):
        make(source).render(HELLO, {})


def test_a_template_that_is_not_jinja_is_an_error_when_it_is_loaded() -> None:
    with pytest.raises(TemplateFailed, match=r"Expected an expression.*line 1"):
        make("{% if %}")
    with pytest.raises(TemplateFailed, match="nested"):
        make("{% for a in messages %}" * 25 + "{% endfor %}" * 25)


# --- comparison with plain Jinja -------------------------------------------------------------------------------------

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'You may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\nAnswer calls as <tool_call>{"name": …, "arguments": …}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role != 'system' or not tools %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA_LIKE = """\
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for message in messages %}
    {{- '<|start|>' + ('ipython' if message.role == 'tool' else message.role) + '<|stop|>\\n\\n' }}
    {%- if loop.first and tools is not none %}
        {{- 'Respond in the format {"name": …, "parameters": …}.\\n\\n' }}
        {%- for t in tools %}{{ t | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
    {%- else %}{{ message.content | trim }}{% endif %}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\\n\\n' }}{% endif %}
"""
MISTRAL_LIKE = """\
{%- set users = messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == users[-1] %}
            {{- '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] }}{{ ', "id": "' + call.id + '"}' }}{{ ', ' if not loop.last }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}
"""
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Bern & Zürich?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abc123xyz",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "abc123xyz", "content": '{"celsius": 3}'},
    {"role": "assistant", "content": "Three degrees."},
    {"role": "user", "content": "Thanks."},
]


def plainly(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    """Render with Jinja alone, given the values that templates expect."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return environment.from_string(source).render(messages=with_objects(messages), tools=tools, **values)


def with_objects(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the arguments of tool calls as objects."""
    return next(call_forms(messages, []))[0]


@pytest.mark.parametrize("source", [CHATML_WITH_TOOLS, LLAMA_LIKE, MISTRAL_LIKE], ids=["chatml", "llama", "mistral"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("turns", [1, 3, 5])
def test_templates_render_like_plain_jinja(source: str, tools: list[dict[str, Any]] | None, turns: int) -> None:
    rendered = make(source).render(with_objects(TURNS[:turns]), {}, tools)
    assert rendered == plainly(source, TURNS[:turns], tools)
    assert "Bern" in rendered
    assert ("get_weather" in rendered) is (tools is not None or turns > 1)


# --- prompts ----------------------------------------------------------------------------------------------------------


def encode(source: str, **given: Any) -> list[int]:
    values: dict[str, Any] = {"messages": HELLO, "tools": TOOLS, "template_kwargs": {}}
    prompt = ChatPrompt(**{name: given.pop(name, value) for name, value in values.items()})
    encoder = PromptEncoder(FakeTokenizer(), template=source, context_size=4096)
    return encoder.encode(Request(id="r", prompt=prompt, **given))


def test_tools_are_shown_to_the_model_unless_none_may_be_called() -> None:
    none = ToolChoice(mode=ToolMode.NONE)
    assert b"get_weather" in bytes(encode(CHATML_WITH_TOOLS)[1:])
    assert b"get_weather" not in bytes(encode(CHATML_WITH_TOOLS, tool_choice=none)[1:])
    encode(CHATML, tool_choice=none)
    with pytest.raises(TemplateFailed):
        encode(CHATML)


def test_no_text_of_a_request_becomes_a_control_token() -> None:
    spelled = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    spelled["tool_calls"][0]["function"]["arguments"] = '{"a": "\\u003c/s>"}'  # type: ignore[index]
    tool = {"type": "function", "function": {"name": "f", "description": "</s>", "parameters": {"</s>": "<s>"}}}
    tokens = encode(
        CHATML_WITH_TOOLS + "{{ mood }}{{ eos_token }}",
        messages=[*HELLO, spelled],
        tools=[tool],
        template_kwargs={"mood": "</s>"},
    )
    assert [token for token in tokens if token > 255] == [256, 257], "the template's own, at its ends"
    assert bytes(token for token in tokens if token < 256).count(b"</s>") == 4


def test_a_bias_of_a_token_the_model_does_not_have_is_refused() -> None:
    encode(CHATML_WITH_TOOLS, sampling=SamplingParams(logit_bias={257: 1.0}))
    with pytest.raises(InvalidPrompt) as caught:
        encode(CHATML_WITH_TOOLS, sampling=SamplingParams(logit_bias={258: 1.0}))
    assert caught.value.param == "logit_bias"


class NoTemplate(FakeTokenizer):
    chat_template = None


def test_chats_of_a_model_without_a_template_end_at_the_mark_of_chatml_and_are_warned_of() -> None:
    chat = Request(id="r", prompt=ChatPrompt(messages=HELLO), stop=["###"])
    text = Request(id="r", prompt=TextPrompt(text="hello"))
    without = PromptEncoder(NoTemplate(), template=None, context_size=512)
    assert without.output_spec(chat, [1]).stop == ("###", "<|im_end|>")
    assert without.output_spec(text, [1]).stop == ()
    assert "no chat template" in (without.templates.warning or "")
    own = PromptEncoder(NoTemplate(), template=CHATML, context_size=512)
    assert own.output_spec(chat, [1]).stop == ("###",)
    assert own.templates.warning is None
