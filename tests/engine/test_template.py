from __future__ import annotations

import pytest

from engine.errors import TemplateFailed
from engine.template import CHATML, ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def make(source: str | None, max_characters: int = 10_000) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", max_characters=max_characters)


def test_a_model_without_a_template_gets_chatml_and_no_invented_system_block() -> None:
    assert make(None).render(HELLO, {}) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert make(CHATML).render(HELLO, {}) == make(None).render(HELLO, {})


def test_templates_get_the_tokens_the_date_and_their_own_arguments() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y')|length }}{{ enable_thinking }}"
    assert make(source).render(HELLO, {"enable_thinking": False}) == "<s></s>4False"


def test_arguments_of_tool_calls_are_objects_in_the_template() -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Bern"}'}}]}
    source = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.city }}{% endfor %}"
    assert make(source).render([turn], {}) == "Bern"
    assert turn["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}', "the request is not changed"


def test_json_is_not_escaped_for_html() -> None:
    assert make("{{ messages[0] | tojson }}").render([{"role": "user", "content": "a<b & 'ö'"}], {}) == (
        '{"role": "user", "content": "a<b & \'ö\'"}'
    )


def test_what_a_template_refuses_is_told_with_its_own_words() -> None:
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
    with pytest.raises(TemplateFailed):
        make(source).render(HELLO, {})


def test_a_template_that_is_not_jinja_is_an_error_when_it_is_loaded() -> None:
    with pytest.raises(TemplateFailed, match="not valid"):
        make("{% if %}")
