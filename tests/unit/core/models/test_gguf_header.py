"""Headers of GGUF files: what is read, and one clear error for everything that is not a whole model."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

import gguf as official
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp._ggml import libggml

from core.models.gguf.ggml_types import FILE_TYPES, TENSOR_TYPES
from core.models.gguf.gguf_header import GgufError, GgufKind, Omitted, is_further_part, read_gguf, read_part
from core.settings import ROOT
from tests.support.gguf_bytes import ARRAY, STRING, Raw, gguf, pair, tensor, text
from tests.support.tiny_models import TinyModel, write_tiny_lora, write_tiny_model

DEMO = ROOT / "models" / "demo.gguf"
LLAMA = {"general.architecture": "llama"}


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def error(path: Path) -> str:
    with pytest.raises(GgufError) as caught:
        read_gguf(path)
    return str(caught.value)


def test_metadata_and_tensors_are_those_that_the_official_reader_finds() -> None:
    header, reader = read_gguf(DEMO), official.GGUFReader(DEMO)
    assert [(each.name, list(each.shape), each.num_bytes) for each in header.tensors] == [
        (each.name, list(map(int, each.shape)), each.n_bytes) for each in reader.tensors
    ]
    assert set(header.metadata) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert header.text("tokenizer.chat_template") == reader.fields["tokenizer.chat_template"].contents()
    assert header.num_tokens == 1024
    assert (header.architecture, header.quantization, header.kind) == ("llama", "Q8_0", GgufKind.MODEL)


def test_sizes_of_number_formats_are_those_of_the_installed_library() -> None:
    libggml.ggml_type_name.argtypes, libggml.ggml_type_name.restype = [ctypes.c_int], ctypes.c_char_p
    libggml.ggml_blck_size.argtypes, libggml.ggml_blck_size.restype = [ctypes.c_int], ctypes.c_int64
    libggml.ggml_type_size.argtypes, libggml.ggml_type_size.restype = [ctypes.c_int], ctypes.c_size_t
    for number, kind in TENSOR_TYPES.items():
        assert libggml.ggml_type_name(number).decode().upper() == kind.name
        assert (libggml.ggml_blck_size(number), libggml.ggml_type_size(number)) == (kind.block, kind.num_bytes)


def test_names_of_quantisations_are_the_official_ones() -> None:
    names = {each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_") for each in official.LlamaFileType}
    shared = names.keys() & FILE_TYPES.keys()
    assert {number: names[number] for number in shared} == {number: FILE_TYPES[number] for number in shared}
    assert len(shared) > 30


def test_long_arrays_are_counted_and_skipped_quickly(tmp_path: Path) -> None:
    words = [f"token {number}" for number in range(262_144)]
    path = write(tmp_path, gguf(LLAMA | {"tokenizer.ggml.tokens": words, "general.name": "after"}))
    began = time.process_time()
    header = read_gguf(path)
    assert time.process_time() - began < 1
    assert header.value("tokenizer.ggml.tokens") == Omitted(262_144)
    assert (header.num_tokens, header.text("general.name")) == (262_144, "after")


def test_a_number_for_all_layers_and_one_for_each_are_read_alike(tmp_path: Path) -> None:
    numbers: Raw = (ARRAY, struct.pack("<IQ3I", 4, 3, 0, 2, 4))
    path = write(tmp_path, gguf(LLAMA | {"llama.block_count": 3, "llama.a": 8, "llama.b": numbers}))
    header = read_gguf(path)
    assert header.per_layer("{}.a") == [8, 8, 8]
    assert header.per_layer("{}.b") == [0, 2, 4]
    assert header.per_layer("{}.absent", 7) == [7, 7, 7]
    assert header.integer("{}.b") == 4


def test_kinds_of_files_are_recognised(tmp_path: Path) -> None:
    vocabulary = write(tmp_path, gguf(LLAMA), "v.gguf")
    projector = write(tmp_path, gguf({"general.architecture": "clip"}, [tensor("t", [4])], data=16), "p.gguf")
    matrix = write(tmp_path, gguf({"general.type": "imatrix"}, [tensor("t", [4])], data=16), "i.gguf")
    assert read_gguf(write_tiny_lora(tmp_path / "l.gguf")).kind is GgufKind.ADAPTER
    assert read_gguf(write_tiny_model(tmp_path / "m.gguf", TinyModel.MAMBA)).kind is GgufKind.MODEL
    assert [read_gguf(path).kind for path in (vocabulary, projector, matrix)] == [
        GgufKind.VOCABULARY,
        GgufKind.PROJECTOR,
        GgufKind.IMPORTANCE_MATRIX,
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello, world", "does not start with `GGUF`"),
        (b"<!doctype html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        (b"PK\x03\x04 rest", "ZIP archive or a PyTorch file"),
        (struct.pack("<Q", 10) + b'{"a":{"dtype":1}}', "safetensors"),
        (b"tjgg" + bytes(8), "came before GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (gguf({}, version=1), "version 1 of GGUF"),
        (gguf({}, version=4), "version 4 of GGUF"),
        (gguf({}, num_pairs=1 << 60), "announces"),
        (gguf({}, num_tensors=1 << 20), "announces 1,048,576 tensors"),
        (gguf({}, num_pairs=3), "a name has 0 bytes"),
        (gguf(LLAMA, num_pairs=2) + pair("general.architecture", "llama"), "damaged"),
        (gguf({"k": (ARRAY, struct.pack("<IQ", STRING, 1 << 60))}), "announces 1,152,921,504,606,846,976 texts"),
        (gguf({"k": (ARRAY, struct.pack("<IQ", 10, 1 << 60))}), "ends within its metadata"),
        (gguf({"k": (ARRAY, struct.pack("<IQ", ARRAY, 1))}), "'k' has the unknown type 9"),
        (gguf({"k": (77, b"")}), "'k' has the unknown type 77"),
        (gguf({"k": (STRING, struct.pack("<Q", 1 << 62))}), "ends within its metadata"),
        (gguf({"general.alignment": 3}, [tensor("t", [4])], data=16), "general.alignment is no power of 2"),
        (gguf(LLAMA, [tensor("t", [4]), tensor("t", [4], offset=32)], data=64), "the tensor 't' is there twice"),
        (gguf(LLAMA, [tensor("a", [4]), tensor("b", [4], offset=0)], data=64), "'b' does not follow"),
        (gguf(LLAMA, [tensor("t", [1, 1, 1, 1, 1])], data=64), "5 dimensions"),
        (gguf(LLAMA, [tensor("t", [1 << 40, 1 << 40])], data=64), "impossible shape"),
        (gguf(LLAMA, [tensor("t", [33], kind=8)], data=64), "impossible shape (33,) for Q8_0"),
        (gguf(LLAMA, [tensor("t", [4], kind=200)], data=64), "number format 200"),
        (gguf(LLAMA, [tensor("t" * 64, [4])], data=64), "a name has 64 bytes"),
        (gguf(LLAMA, [tensor("t", [1 << 20])], data=64), "is incomplete: it has"),
    ],
)
def test_a_file_that_is_no_whole_model_gets_one_clear_error(tmp_path: Path, content: bytes, reason: str) -> None:
    message = error(write(tmp_path, content))
    assert reason in message
    assert "model.gguf" in message


def test_a_file_that_ends_anywhere_gets_an_error(tmp_path: Path) -> None:
    whole = gguf(LLAMA | {"llama.words": ["one", "two"]}, [tensor("t", [4])], data=16)
    assert read_gguf(write(tmp_path, whole)).num_parameters == 4
    for length in range(len(whole)):
        assert error(write(tmp_path, whole[:length]))


def test_a_key_twice_is_an_error(tmp_path: Path) -> None:
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair("a", 1) + pair("a", 2)
    assert "there twice" in error(write(tmp_path, content))


def test_a_sparse_file_of_zeros_ends_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, gguf({}, num_pairs=1 << 16))
    os.truncate(path, 1 << 40)
    assert "a name has 0 bytes" in error(path)
    strings = pair("k", (ARRAY, struct.pack("<IQ", STRING, 1 << 22)))
    path = write(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + strings)
    os.truncate(path, 1 << 40)
    assert read_gguf(path).value("k") == Omitted(1 << 22)
    path = write(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair("k", (STRING, struct.pack("<Q", 1 << 35))))
    os.truncate(path, 1 << 40)
    assert "longer than 256 MiB" in error(path)


def test_texts_are_kept_up_to_a_total_only(tmp_path: Path) -> None:
    long = {f"k{number}": "x" * (6 << 20) for number in range(4)}
    header = read_gguf(write(tmp_path, gguf(long)))
    assert [isinstance(header.value(key), str) for key in long] == [True, True, False, False]


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "There is no file" in error(tmp_path / "pipe.gguf")
    assert "There is no file" in error(tmp_path)


def test_numbers_of_impossible_size_or_type_name_their_key(tmp_path: Path) -> None:
    path = write(tmp_path, gguf(LLAMA | {"llama.block_count": 513, "llama.text": "many"}))
    header = read_gguf(path)
    with pytest.raises(GgufError, match=r"model.gguf: llama.block_count is no whole number from 0 to 512"):
        _ = header.num_layers
    with pytest.raises(GgufError, match="llama.text is no whole number"):
        header.integer("{}.text")


def parts(folder: Path, number: int, count: int, *, tensors_each: int = 1, layers: int = 0) -> list[Path]:
    return [
        write(
            folder,
            gguf(
                (LLAMA | {"llama.block_count": layers} if index == 0 else {})
                | {"split.no": index, "split.count": count, "split.tensors.count": count * tensors_each},
                [tensor(f"t{index}.{each}", [8], offset=32 * each) for each in range(tensors_each)],
                data=32 * tensors_each,
            ),
            f"big-{index + 1:05}-of-{count:05}.gguf",
        )
        for index in range(number)
    ]


def test_parts_of_a_split_model_are_joined(tmp_path: Path) -> None:
    paths = parts(tmp_path, 3, 3, tensors_each=2)
    header = read_gguf(paths[0])
    assert [each.name for each in header.tensors] == ["t0.0", "t0.1", "t1.0", "t1.1", "t2.0", "t2.1"]
    assert (header.tensor_bytes, header.architecture, header.paths) == (6 * 32, "llama", tuple(paths))
    assert [is_further_part(path.name) for path in paths] == [False, True, True]


def test_parts_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    paths = parts(tmp_path, 4, 4)
    paths[2].unlink()
    assert "big-00003-of-00004.gguf is missing beside big-00001-of-00004.gguf" in error(paths[0])
    paths[1].unlink()
    assert "big-00002-of-00004.gguf and 1 more parts are missing" in error(paths[0])
    assert "big-00004-of-00004.gguf is part 4 of 4 of a model. Name its first part." in error(paths[3])
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    assert "finds only by names such as NAME-00001-of-00004.gguf" in error(renamed)
    paths = parts(tmp_path, 4, 4)
    paths[1].write_bytes(paths[2].read_bytes())
    assert "'t2.0' is there twice" in error(paths[0])
    paths[1].write_bytes(gguf({}, [tensor("a", [4]), tensor("b", [4], offset=32)], data=64))
    assert "5 tensors together, not 4" in error(paths[0])


COUNTS = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
WHOLE = gguf(
    LLAMA | {"llama.block_count": 2, "llama.words": ["one", "two"], "llama.flag": True, "general.name": "n"},
    [tensor("blk.0.attn_k.weight", [32, 2], kind=8), tensor("t", [4], offset=96)],
    data=112,
)


@given(
    edits=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, len(WHOLE)),
)
def test_random_damage_gives_a_header_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(WHOLE)
    for at, value in edits:
        content[at] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(content[: cut or None])
    problem = ""
    try:
        header = read_part(path)
        assert header.tensor_bytes <= len(content)
        assert header.kind in GgufKind
        assert header.num_tokens >= 0
        assert 0 <= header.num_layers <= 512
    except GgufError as error:
        problem = str(error)
    assert problem[:11] in ("", "fuzzed.gguf")


@given(content=st.binary(max_size=400), num_pairs=COUNTS, num_tensors=COUNTS)
def test_random_bytes_give_all_that_they_announce_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, num_pairs: int, num_tensors: int
) -> None:
    counts = struct.pack("<QQ", num_tensors, num_pairs)
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    for start in (b"", b"GGUF" + struct.pack("<I", 3), b"GGUF" + struct.pack("<I", 3) + counts):
        path.write_bytes(start + content)
        problem = ""
        try:
            header = read_part(path)
            announced = struct.unpack_from("<QQ", start + content, 8)
            assert (len(header.tensors), len(header.metadata)) == announced
            assert header.tensor_bytes <= len(content)
        except GgufError as error:
            problem = str(error)
        assert problem[:11] in ("", "random.gguf")


def test_texts_with_broken_utf8_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("n") + struct.pack("<I", STRING) + text(b"\xff")
    )
    assert read_gguf(path).text("n") == "�"
