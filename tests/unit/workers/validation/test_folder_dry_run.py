"""The lines of a folder's model are counted and checked with the folder's own tokenizer, without its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.models.engine_options import BackendKind
from engine.backends.vocabularies import load_vocabulary
from engine.errors import ModelFailed
from engine.inputs.prompt_encoder import PromptEncoder
from engine.process.check import ModelCheck, check_model
from engine.types import ChatPrompt, Request
from tests.support.tiny_folders import TinyFolder, make_folder, transformers


def test_a_chat_is_counted_as_the_library_counts_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, TinyFolder.QWEN2)
    (folder / "model.safetensors").write_bytes(b"")
    loaded = load_vocabulary(BackendKind.TRANSFORMERS, str(folder))
    messages = [{"role": "user", "content": "count the sacks"}]
    request = Request(id="r", prompt=ChatPrompt(messages=messages))
    tokens = PromptEncoder(loaded.tokenizer, template=None, context_size=64).encode(request)
    library = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokens == library.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert loaded.for_grammars().vocab_size == loaded.tokenizer.num_vocab


def test_a_broken_folder_is_found_by_the_check_of_model_files(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, TinyFolder.QWEN2)
    check = ModelCheck(name="m", path=str(folder), backend=BackendKind.TRANSFORMERS)
    assert check_model(check).error is None
    (folder / "tokenizer.json").write_text("nothing")
    assert "cannot load the tokenizer" in (check_model(check).error or "")


def test_without_the_extra_the_way_to_install_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.transformers.tokenizer", None)
    with pytest.raises(ModelFailed, match="make transformers"):
        load_vocabulary(BackendKind.TRANSFORMERS, str(tmp_path))


def test_a_check_needs_no_torch(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, TinyFolder.QWEN2)
    program = (
        "import sys\nfrom engine.backends.vocabularies import load_vocabulary\nfrom engine.config import BackendKind\n"
        f"load_vocabulary(BackendKind.TRANSFORMERS, {str(folder)!r}).for_grammars()\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'torch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
