"""Routing between models: shares of a common alias, and models that answer in place of others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.models.fields.routing_fields import ranked
from core.models.model_files import ModelCatalog, ModelConfig
from core.models.models_folder import FolderReader, load_models


def model(name: str, **keys: Any) -> ModelConfig:
    return ModelConfig(name=name, backend="fake", **keys)


def sharing(**weights: float) -> list[ModelConfig]:
    return [model(name, aliases=("all",), weight=weight) for name, weight in weights.items()]


def test_keys_are_divided_by_weight() -> None:
    models = sharing(small=1, large=3, middle=2)
    drawn = Counter(ranked(models, f"line-{n}")[0].name for n in range(6000))
    assert drawn == {
        "small": pytest.approx(1000, rel=0.1),
        "middle": pytest.approx(2000, rel=0.1),
        "large": pytest.approx(3000, rel=0.1),
    }


def test_a_key_always_gets_the_same_model_and_moves_only_when_that_is_down() -> None:
    catalog = ModelCatalog(sharing(a=1, b=1, c=1))
    backwards = ModelCatalog(sharing(c=1, b=1, a=1))
    for n in range(200):
        picked, without_a = catalog.pick("all", f"{n}"), catalog.pick("all", f"{n}", down={"a"})
        assert picked is not None
        assert without_a is not None
        assert picked.name == backwards.pick("all", f"{n}").name  # type: ignore[union-attr]
        assert without_a.name == picked.name if picked.name != "a" else without_a.name in ("b", "c")
    assert catalog.pick("all", "x", down={"a", "b", "c"}) == catalog.pick("all", "x"), "all are down: it waits"
    assert catalog.pick("none", "x") is None


@pytest.mark.parametrize(
    "models",
    [
        [model("a", aliases=("all",)), model("b", aliases=("all",))],
        [model("a", aliases=("all",), weight=1), model("b", aliases=("all",))],
        [model("a", weight=1), model("b", aliases=("a",), weight=1)],
        [model("a", weight=1), model("a", weight=1)],
    ],
)
def test_only_an_alias_is_shared_and_only_with_weights(models: list[ModelConfig]) -> None:
    with pytest.raises(ConfigError, match="Two models are called"):
        ModelCatalog(models)


def write(folder: Path, name: str, keys: str) -> None:
    (folder / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\n{keys}\n")


def test_files_share_an_alias_when_each_has_a_weight(tmp_path: Path) -> None:
    write(tmp_path, "a", "aliases: [all]\nweight: 2")
    write(tmp_path, "b", "aliases: [all]")
    reader = FolderReader(tmp_path)
    assert reader.read().problems == {
        "b.yaml": "Two models are called 'all', in a.yaml and b.yaml. Rename one of them, or give each a `weight` to divide the "
        "requests for an alias."
    }
    write(tmp_path, "b", "aliases: [all]\nweight: 0.5")
    assert not reader.read().problems
    assert [each.name for each in load_models(tmp_path).called("all")] == ["a", "b"]


def test_fallbacks_are_a_chain_without_repetition() -> None:
    catalog = ModelCatalog(
        [
            model("a", fallback=("b", "gone", "c")),
            model("b", fallback=("d", "a")),
            model("c", fallback=("b", "c-again")),
            model("d", fallback=("b",), aliases=("also-d",)),
        ]
    )
    first = catalog.get("a")
    assert first is not None
    assert [each.name for each in catalog.fallbacks(first, "k")] == ["b", "d", "c"]
    assert not ModelCatalog([model("x", fallback=("y",))]).fallbacks(model("x", fallback=("y",)), "k")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("fallback: m", "line 3: fallback: m is this model itself; name others"),
        ("aliases: [x]\nfallback: [y, x]", "line 4: fallback: x is this model itself; name others"),
        ("fallback: [y, y]", "line 3: fallback: names a model twice"),
        ("fallback: {a: 1}", "line 3: fallback must be a list"),
        ("weight: 0", "line 3: weight must be more than 0"),
        ("weight: heavy", "line 3: weight must be a number"),
        ("weight: .inf", "line 3: weight must be"),
    ],
)
def test_a_wrong_key_of_routing_is_named_with_its_line(tmp_path: Path, keys: str, said: str) -> None:
    write(tmp_path, "m", keys)
    with pytest.raises(ConfigError) as caught:
        load_models(tmp_path)
    assert said in str(caught.value)
