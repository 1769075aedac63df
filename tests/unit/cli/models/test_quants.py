"""Quantisations: their names, the files that belong together, and the choice between them."""

from __future__ import annotations

import pytest

from cli.errors import CommandFailed
from cli.models.sources.quants import NamedFile, check_parts, choose, quant_of, variants, without_quant

GB = 10**9


@pytest.mark.parametrize(
    ("name", "quant", "model"),
    [
        ("tiny-Q4_K_M.gguf", "Q4_K_M", "tiny"),
        ("tiny.q8_0.gguf", "Q8_0", "tiny"),
        ("Qwen3-8B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS", "Qwen3-8B"),
        ("gemma-3-4b-it-bf16.gguf", "BF16", "gemma-3-4b-it"),
        ("model-fp16.gguf", "F16", "model"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4", "gpt-oss-20b"),
        ("Q4_0/big-Q4_0-00001-of-00003.gguf", "Q4_0", "big"),
        ("UD-Q4_K_XL/big-00001-of-00002.gguf", "UD-Q4_K_XL", "big"),
        ("model.gguf", "", "model"),
        ("q-learner.gguf", "", "q-learner"),
        ("Q8_0.gguf", "Q8_0", "Q8_0"),
    ],
)
def test_names_of_files_have_a_quantisation_and_a_model(name: str, quant: str, model: str) -> None:
    assert quant_of(name) == quant
    assert without_quant(name) == model


def files(**sizes: float) -> list[NamedFile]:
    return [NamedFile(f"m-{name}.gguf", int(size * GB)) for name, size in sizes.items()]


def test_parts_are_one_model_and_other_files_are_none() -> None:
    names = ["a-Q8_0-00002-of-00002.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q4_0.gguf", "mmproj-F16.gguf", "README.md"]
    found = variants(NamedFile(name, GB) for name in [*names, "a.imatrix.gguf"])
    assert [(each.quant, each.first, len(each.files), each.size // GB) for each in found] == [
        ("Q4_0", "a-Q4_0.gguf", 1, 1),
        ("Q8_0", "a-Q8_0-00001-of-00002.gguf", 2, 2),
    ]
    with pytest.raises(CommandFailed, match=r"a-Q8_0-00001-of-00002.gguf is missing: the model has 2 parts, and 1 are"):
        check_parts(variants([NamedFile("a-Q8_0-00002-of-00002.gguf", 1)])[0])


def test_the_default_is_four_bits() -> None:
    choice = choose(variants(files(Q2_K=3, Q4_K_M=5, Q8_0=9)), "", 100 * GB, "here")
    assert (choice.variant.quant, choice.reason) == ("Q4_K_M", "it is the usual compromise of size and quality")


def test_the_nearest_that_fits_is_next() -> None:
    found = variants(files(Q2_K=3, Q3_K_M=4, Q4_K_M=5, Q8_0=9))
    choice = choose(found, "", 4 * GB, "here")
    assert choice.variant.quant == "Q3_K_M"
    assert choice.reason == "Q4_K_M does not fit into 3.7 GiB, and it is the nearest that fits"
    choice = choose(variants(files(Q2_K=3, Q5_K_M=6, Q8_0=9)), "", 100 * GB, "here")
    assert (choice.variant.quant, choice.reason) == ("Q5_K_M", "there is no Q4_K_M, and it is the nearest that fits")


def test_the_smallest_is_taken_where_none_fits() -> None:
    choice = choose(variants(files(Q2_K=3, Q4_K_M=5)), "", GB, "here")
    assert (choice.variant.quant, choice.reason) == ("Q2_K", "it is the smallest, and none fits into 954 MiB")


def test_a_named_quantisation_is_found_in_any_case() -> None:
    found = variants([*files(Q4_K_M=5, Q8_0=9), NamedFile("m-UD-Q4_K_XL.gguf", 6 * GB)])
    assert choose(found, "q8_0", 0, "here").variant.quant == "Q8_0"
    assert choose(found, "Q4_K_XL", 0, "here").variant.quant == "UD-Q4_K_XL"


def test_a_quantisation_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(CommandFailed) as caught:
        choose(variants(files(Q4_K_M=5, Q8_0=9)), "Q6_K", 0, "acme/tiny")
    assert str(caught.value).splitlines() == [
        "acme/tiny has no Q6_K. It has:",
        "  Q4_K_M  4.7 GiB  m-Q4_K_M.gguf",
        "  Q8_0    8.4 GiB  m-Q8_0.gguf",
    ]


def test_several_models_in_one_place_need_a_file_name() -> None:
    found = variants([NamedFile("a-Q8_0.gguf", 1), NamedFile("b-Q8_0.gguf", 2)])
    for quant in ("", "Q8_0"):
        with pytest.raises(CommandFailed, match=r"(?s)Name .*a-Q8_0.gguf.*b-Q8_0.gguf"):
            choose(found, quant, 10, "here")


def test_the_only_file_needs_no_reason() -> None:
    assert choose(variants([NamedFile("model.gguf", 1)]), "", 0, "here").reason == ""
