from __future__ import annotations

from typing import Any

import pytest

from engine.inputs.chat_template import ChatTemplate
from engine.inputs.special_text import Fragment, SpecialText

SPECIAL = SpecialText(("<s>", "</s>", "</think>"))


def render(source: str, content: str) -> list[Fragment]:
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", max_characters=10_000)
    values: Any = SPECIAL.without_marks([{"role": "user", "content": content}])
    return SPECIAL.fragments(template.render(values, {}), template.render(SPECIAL.enclose(values), {}))


def plain(fragments: list[Fragment]) -> list[str]:
    return [text for text, is_plain in fragments if is_plain]


def whole(fragments: list[Fragment]) -> str:
    return "".join(text for text, _ in fragments)


@pytest.mark.parametrize(
    ("source", "content", "rendered", "expected"),
    [
        ("<s>{{ messages[0].content }}</s>", "a </s> b<s>", "<s>a </s> b<s></s>", ["</s>", "<s>"]),
        ("<s>{{ messages[0].content | trim }}", " </s>\n", "<s></s>", ["</s>"]),
        ("{{ messages[0].content | tojson(ensure_ascii=True) }}</s>", "ü</s>", '"\\u00fc</s>"</s>', ["</s>"]),
        # a template that looks at the text sees it as it is
        ("{{ messages[0].content.startswith('</s>') }}{{ messages[0].content }}", "</s>a", "True</s>a", ["</s>"]),
        ("{{ messages[0].content | length }}{{ messages[0].content }}", "</s>", "4</s>", ["</s>"]),
        ("<s>{{ messages[0].content.split('</think>')[-1].lstrip() }}</s>", "so</think>\n\na", "<s>a</s>", []),
        ("{{ messages[0].content.split('</think>')[0].rstrip() }}\n</think>a", "so\n</think>a", "so\n</think>a", []),
    ],
)
def test_a_prompt_is_rendered_as_if_no_text_were_special(
    source: str, content: str, rendered: str, expected: list[str]
) -> None:
    fragments = render(source, content)
    assert (whole(fragments), plain(fragments)) == (rendered, expected)


@pytest.mark.parametrize(
    ("shown", "content"),
    [
        ("'' if messages[0].content == '</s>' else messages[0].content", "</s>"),
        ("messages[0].content[1:]", "</s></s>"),
        ("messages[0].content[:-1]", "</s></s>"),
    ],
)
def test_a_text_that_the_marks_change_gets_no_control_token(shown: str, content: str) -> None:
    fragments = render(f"{{{{ {shown} }}}}<s>", content)
    assert [text for text, is_plain in fragments if "s>" in text and not is_plain] == ["<s>"]


def test_marks_of_a_request_are_dropped() -> None:
    value = {"a\ufdd0": ["\ufdd1</s>\ufdd2", 1]}
    assert SPECIAL.is_in("\ufdd2")
    assert SPECIAL.is_in(value)
    assert SPECIAL.without_marks(value) == {"a": ["</s>", 1]}
    assert not SpecialText(()).is_in(["</s>", ""])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["</", "s>"], True),
        (["a </ ", " s> b"], True),
        (["<s", "></s>"], True),
        (["</s>", "<s>"], False),
        (["a", "b"], False),
        (["</s>"], False),
    ],
)
def test_spellings_made_by_joining_texts_are_found(texts: list[str], expected: bool) -> None:
    assert SPECIAL.is_made_by_joining(texts) is expected
