"""The chart, rendered without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from core.settings import ROOT

CHART = ROOT / "deploy" / "helm" / "millrace"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
RELEASE = "mine"
NAMES = ["defaults", *sorted(path.stem for path in EXAMPLES.glob("*.yaml"))]

Manifest = dict[str, Any]


def example(name: str) -> dict[str, Any]:
    return {} if name == "defaults" else yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())


def render(values: dict[str, Any], *, is_upgrade: bool = False) -> list[Manifest]:
    """The manifests of these values; raises the library's error for values that the chart refuses."""
    helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=RELEASE, namespace="work", is_install=not is_upgrade, is_upgrade=is_upgrade)
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The specs of all pods, with the names of what makes them."""
    for each in manifests:
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield f"{each['kind']}/{each['metadata']['name']}", each["spec"]["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """All containers with their pods."""
    for name, pod in pods(manifests):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}/{container['name']}", container, pod
