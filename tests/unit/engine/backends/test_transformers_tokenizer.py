"""Tokenizers of folders: bytes of tokens, frames, ends and templates, equal to those of the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_folders import TinyFolder, make_folder, sentencepiece_tokenizer, transformers

from engine.backends.transformers.tokenizer import FolderTokenizer  # isort: skip - after the check for the extra

TEXTS = ("the mill", "a", " a b", "grün, 水 🌾\n\ttab", "x" * 40)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bytes"), TinyFolder.LLAMA)


@pytest.fixture(scope="module")
def sentencepiece_folder(byte_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "config.json").write_text((byte_folder / "config.json").read_text())
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = {"default": "plain", "tool_use": "with tools"}
    fast.save_pretrained(folder)
    return folder


def load(folder: Path) -> FolderTokenizer:
    return FolderTokenizer(folder, trust_remote_code=False)


def decoded(tokenizer: FolderTokenizer, tokens: list[int]) -> str:
    return b"".join(map(tokenizer.piece, tokens)).decode()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_byte_level_vocabulary_are_the_text(text: str, byte_folder: Path) -> None:
    tokenizer = load(byte_folder)
    assert not tokenizer.adds_space
    assert decoded(tokenizer, tokenizer.encode(text, special=False, add_bos=True)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_sentencepiece_vocabulary_are_the_text_behind_a_space(
    text: str, sentencepiece_folder: Path
) -> None:
    tokenizer = load(sentencepiece_folder)
    assert tokenizer.adds_space
    assert decoded(tokenizer, tokenizer.encode(text, special=False, add_bos=True)) == f" {text}"
    assert decoded(tokenizer, tokenizer.encode(text, special=False, add_bos=False, continues=True)) == text


def test_a_text_begins_and_ends_as_the_library_frames_it(sentencepiece_folder: Path, tmp_path: Path) -> None:
    pieces = load(sentencepiece_folder)
    library = transformers.AutoTokenizer.from_pretrained(sentencepiece_folder)
    assert pieces.encode("ab a", special=False, add_bos=True) == library("ab a").input_ids
    words = load(make_folder(tmp_path, TinyFolder.BERT))
    framed = transformers.AutoTokenizer.from_pretrained(tmp_path)("The river.").input_ids
    assert words.encode("The river.", special=False, add_bos=True, add_end=True) == framed
    assert words.encode("The river.", special=False, add_bos=True) == framed[:-1]
    assert words.encode("The river.", special=False, add_bos=False) == framed[1:-1]


def test_the_spelling_of_a_control_token_is_text_unless_it_is_special(byte_folder: Path) -> None:
    tokenizer = load(byte_folder)
    (user,) = tokenizer.encode("<|user|>", special=True, add_bos=False)
    assert tokenizer.piece(user) == b""
    plain = tokenizer.encode("<|user|>", special=False, add_bos=False)
    assert user not in plain
    assert decoded(tokenizer, plain) == "<|user|>"
    assert set(tokenizer.special_texts) == {"<|end|>", "<|user|>", "<|assistant|>"}


def test_every_source_may_name_an_end(byte_folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((byte_folder / file).read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 999_999]}))
    tokenizer = load(tmp_path)
    assert tokenizer.end_tokens == [0, 2]
    assert tokenizer.is_end(2)
    assert not tokenizer.is_end(1)


def test_a_folder_may_have_a_template_for_tools(sentencepiece_folder: Path, byte_folder: Path) -> None:
    tokenizer = load(sentencepiece_folder)
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("plain", "with tools")
    assert load(byte_folder).tool_template is None


def test_the_grammar_vocabulary_spells_tokens_the_same_way(sentencepiece_folder: Path, byte_folder: Path) -> None:
    for folder in (sentencepiece_folder, byte_folder):
        tokenizer = load(folder)
        grammar = tokenizer.grammar_tokenizer()
        assert grammar.vocab_size == tokenizer.num_vocab
        no_text = (b"", b"\xff")  # a byte that is in no UTF-8, which llguidance keeps for control tokens
        spelled = [token for token in range(tokenizer.num_vocab) if tokenizer.piece(token) not in no_text]
        assert [grammar.decode_bytes([token]) for token in spelled] == [tokenizer.piece(token) for token in spelled]
