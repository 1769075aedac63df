"""Vocabularies of SentencePiece begin a text with a space, which no text of a request has."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.backends.llama.backend import LlamaBackend
from engine.backends.llama.tokenizer import LlamaTokenizer, load_vocabulary
from engine.config import EngineConfig
from engine.embedding import encode_inputs
from engine.inputs.prompt_encoder import PromptEncoder
from engine.types import Delta, EmbedRequest, Request, SamplingParams, TextPrompt, TokenPrompt
from tests.support.engine import Bench, chat
from tests.support.tiny_models import write_sentencepiece_model

TEMPLATES = [{"name": "default", "template": "default " * 20}, {"name": "tool_use", "template": "tools"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece_model(tmp_path_factory.mktemp("models") / "spaced.gguf", adds_space=True)


@pytest.fixture(scope="module")
def vocabulary(path: Path) -> LlamaTokenizer:
    return load_vocabulary(path)


@pytest.fixture(scope="module")
def bench(path: Path) -> Bench:
    return Bench(LlamaBackend(EngineConfig(model="m", endpoint="", model_path=str(path), context_size=128, slots=1)))


def spelled(tokenizer: LlamaTokenizer, tokens: list[int]) -> str:
    return b"".join(map(tokenizer.piece, tokens)).decode()


def test_a_text_that_continues_another_gets_no_space(vocabulary: LlamaTokenizer) -> None:
    assert vocabulary.adds_space
    whole = vocabulary.encode("ab c", special=False, add_bos=False)
    assert spelled(vocabulary, whole) == " ab c"
    for text in ("ab c", " ab", "", "\n", "世", "\x01a"):
        continued = vocabulary.encode(text, special=False, add_bos=False, continues=True)
        assert spelled(vocabulary, continued) == text


def test_a_vocabulary_that_adds_no_space_is_left_alone(tmp_path: Path) -> None:
    plain = load_vocabulary(write_sentencepiece_model(tmp_path / "plain.gguf", adds_space=False))
    assert not plain.adds_space
    assert spelled(plain, plain.encode("ab c", special=False, add_bos=True)) == "ab c"


def test_only_a_text_to_embed_gets_the_end_that_the_vocabulary_adds(tmp_path: Path, vocabulary: LlamaTokenizer) -> None:
    ended = load_vocabulary(write_sentencepiece_model(tmp_path / "ended.gguf", adds_space=True, adds_end=True))
    begun = vocabulary.encode("ab", special=False, add_bos=True)
    assert ended.encode("ab", special=False, add_bos=True) == begun
    assert ended.encode("ab</s>", special=True, add_bos=True) == [*begun, 2]
    assert ended.encode("ab", special=False, add_bos=True, add_end=True) == [*begun, 2]
    prompt = PromptEncoder(ended, template=None, context_size=64)
    assert prompt.encode(Request(id="r", prompt=TextPrompt(text="ab"))) == begun
    (embedded,) = encode_inputs(EmbedRequest(id="e", inputs=[TextPrompt(text="ab")]), ended, 64)
    assert embedded == [*begun, 2]


def test_the_text_of_a_special_token_in_a_chat_changes_no_spaces(bench: Bench) -> None:
    tokens = bench.encoder.encode(chat("a</s> b <s>c"))
    assert bench.backend.tokenizer.is_end(2)
    assert tokens[0] == 1
    assert 1 not in tokens[1:]
    assert 2 not in tokens
    assert b"".join(map(bench.backend.tokenizer.piece, tokens)) == b" a</s> b <s>c"


@pytest.mark.parametrize("text", ["ab c", " ab", "世 a", "\nab"])
def test_an_echo_is_the_prompt_itself(bench: Bench, text: str) -> None:
    tokens = bench.encoder.encode(Request(id="e", prompt=TextPrompt(text=text)))
    for given in (TextPrompt(text=text), TokenPrompt(tokens=tokens)):
        sampling = SamplingParams(temperature=0)
        bench.add(Request(id="r", prompt=given, sampling=sampling, max_tokens=2, echo=True, logprobs=0, stream=True))
        (choice,) = bench.run()["r"].choices
        assert choice.text.startswith(text)
        assert "".join(item.text for item in bench.outputs if isinstance(item, Delta)) == choice.text
        assert choice.logprobs is not None
        first, *others = choice.logprobs
        assert (first.piece, first.is_hidden) == (b"<s>", True), "the start token is not in the text"
        assert b"".join(token.piece for token in others).decode(errors="replace") == choice.text


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_prompt_that_is_only_scored_is_the_prompt_itself(bench: Bench, logprobs: int | None) -> None:
    bench.add(Request(id="r", prompt=TextPrompt(text="ab c"), max_tokens=0, echo=True, logprobs=logprobs))
    (choice,) = bench.run()["r"].choices
    assert choice.text == "ab c"
    if logprobs is not None:
        assert [token.piece for token in choice.logprobs or ()] == [b"<s>", b"a", b"b", b" ", b"c"]


def test_both_templates_of_a_file_are_read_whole(tmp_path: Path, vocabulary: LlamaTokenizer) -> None:
    both = load_vocabulary(write_sentencepiece_model(tmp_path / "m.gguf", adds_space=True, templates=TEMPLATES))
    assert (both.chat_template, both.tool_template) == ("default " * 20, "tools")
    assert (vocabulary.chat_template, vocabulary.tool_template) == ("{{ messages[0].content }}", None)
