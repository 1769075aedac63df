"""The Helm chart: valid for several versions of Kubernetes, and each pod as it should be."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from core.settings import Settings
from tests.unit.deploy.chart import CHART, NAMES, RELEASE, Manifest, containers, example, pods, render
from tests.unit.deploy.command_lines import parse

VERSIONS = ("1.29", "1.33", "1.37")
CUSTOM = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"}
OWN_VARIABLES = {"DATABASE_URL_FILE", "REDIS_URL_FILE", "HOME"}


@pytest.fixture(scope="module", params=NAMES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(example(request.param))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_valid(manifests: list[Manifest], version: str) -> None:
    checked = [each for each in manifests if each["kind"] not in CUSTOM]
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)  # raises
    assert len(checked) > 10


def test_names_are_unique_and_labelled(manifests: list[Manifest]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(names) == len(set(names))
    for each in manifests:
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE, each["metadata"]["name"]
        assert len(each["metadata"]["name"]) <= 63


def test_each_container_is_confined(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service may be named so that its variables look like settings"
    for name, container, _ in containers(manifests):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"], name
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"], name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name


def test_each_service_has_probes_and_each_mount_a_volume(manifests: list[Manifest]) -> None:
    for name, container, pod in containers(manifests):
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {"data"} if name.endswith("/postgres") else set()  # its claim is the StatefulSet's
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
        if name.startswith("Job/") or container not in pod["containers"]:
            continue
        assert {"startupProbe", "livenessProbe"} <= set(container), name
        paths = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert "/tmp" in paths, name


def test_a_pod_has_longer_than_its_drain(manifests: list[Manifest]) -> None:
    for name, container, pod in containers(manifests):
        variables = {each["name"]: each.get("value") for each in container.get("env", [])}
        if "MILLRACE_DRAIN_SECONDS" in variables and container in pod["containers"]:
            assert pod["terminationGracePeriodSeconds"] >= int(variables["MILLRACE_DRAIN_SECONDS"]) + 10, name


def test_no_secret_is_in_the_text_of_a_pod_or_a_config_map(manifests: list[Manifest]) -> None:
    for name, container, _ in containers(manifests):
        for variable in container.get("env", []):
            value = variable.get("value", "")
            assert "://" not in value.replace("s3://millrace/files", ""), (name, variable)
            if re.search(r"PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL|REDIS_URL", variable["name"]):
                assert "valueFrom" in variable or variable["name"].endswith("_FILE"), (name, variable)
    secrets = [value for each in manifests if each["kind"] == "Secret" for value in each["stringData"].values()]
    passwords = [value for value in secrets if re.fullmatch(r"\w{32}", value)]
    others = json.dumps([each for each in manifests if each["kind"] != "Secret"])
    assert not [password for password in passwords if password in others]


def test_every_variable_is_a_setting_and_every_command_parses(manifests: list[Manifest]) -> None:
    for name, container, _ in containers(manifests):
        if "millrace" not in container["image"].partition(":")[0]:
            continue
        given = {each["name"] for each in container["env"] if "valueFrom" not in each} - OWN_VARIABLES
        known = {f"MILLRACE_{field.upper()}" for field in Settings.model_fields}
        assert given <= known, (name, given - known)
        commands = [container["command"]]
        commands += [
            probe["exec"]["command"] for key, probe in container.items() if key.endswith("Probe") and "exec" in probe
        ]
        for command in commands:
            assert command[0] == "millrace"
            parse(command[1:])


def by_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {
        each["metadata"]["name"].removeprefix(f"{RELEASE}-millrace-"): each
        for each in manifests
        if each["kind"] == kind
    }


def test_values_of_settings_are_accepted_by_the_settings(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, container, _ in containers(manifests):
        for variable in container.get("env", []):
            field = variable["name"].lower().removeprefix("millrace_")
            if field in Settings.model_fields and variable["name"].startswith("MILLRACE_") and field != "files_url":
                monkeypatch.setenv(variable["name"], variable["value"])
    assert Settings().state_dir


def test_the_schema_is_upgraded_before_all_else_unless_the_database_comes_with_the_release() -> None:
    def hook(manifests: list[Manifest]) -> str | None:
        (job,) = by_kind(manifests, "Job").values()
        return job["metadata"].get("annotations", {}).get("helm.sh/hook")

    assert hook(render(example("defaults"))) is None, "the bundled Postgres does not run yet"
    assert hook(render(example("defaults"), is_upgrade=True)) == "pre-install,pre-upgrade"
    assert hook(render(example("external"))) == "pre-install,pre-upgrade"
    for name, pod in pods(render(example("external"))):
        if name.startswith("Deployment/"):
            assert next(each["command"][:3] for each in pod["initContainers"]) == ["millrace", "db", "check"]


def test_a_class_of_workers_scales_from_zero_by_the_work_for_its_models() -> None:
    manifests = render(example("gpu-keda"))
    scaled = by_kind(manifests, "ScaledObject")["worker-cuda"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 8)
    deployment = by_kind(manifests, "Deployment")["worker-cuda"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "an upgrade would undo what KEDA has decided"
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "postgresql"
    assert {"query", "targetQueryValue", "activationTargetQueryValue"} <= set(trigger["metadata"])
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert "model IN ('qwen3-8b')" in trigger["metadata"]["query"]
    authentication = by_kind(manifests, "TriggerAuthentication")["database"]
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (reference,) = authentication["spec"]["secretTargetRef"]
    assert reference["key"] in by_kind(manifests, "Secret")["services"]["stringData"]
    api = next(container for name, container, _ in containers(manifests) if name.endswith("/api"))
    assert {"name": "MILLRACE_CHATS_WAIT_FOR_WORKERS", "value": "true"} in api["env"]
    api = next(container for name, container, _ in containers(render({})) if name.endswith("/api"))
    assert "MILLRACE_CHATS_WAIT_FOR_WORKERS" not in [each["name"] for each in api["env"]]


def test_a_service_monitor_names_ports_that_services_have() -> None:
    manifests = render(example("everything"))
    (monitor,) = by_kind(manifests, "ServiceMonitor").values()
    ports = {port["name"] for service in by_kind(manifests, "Service").values() for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_every_selector_of_a_service_budget_and_policy_finds_pods(manifests: list[Manifest]) -> None:
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] in ("Deployment", "StatefulSet", "Job")
    ]
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            selector = spec.get("podSelector", spec.get("selector"))
            wanted = selector.get("matchLabels", selector)
            assert [one for one in labels if wanted.items() <= one.items()], each["metadata"]["name"]


def test_everything_is_denied_but_what_is_needed() -> None:
    policies = by_kind(render({}), "NetworkPolicy")
    deny = policies.pop("default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(deny)
    assert {name for name, policy in policies.items() if policy["spec"].get("ingress")} == {"api", "postgres", "valkey"}
    assert not [name for name in ("postgres", "valkey") if policies[name]["spec"].get("egress")]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"postgres": {"enabled": False}}, "Set database.existingSecret"),
        ({"valkey": {"enabled": False}}, "Set queue.existingSecret"),
        ({"database": {"existingSecret": "x"}}, "Set postgres.enabled=false"),
        ({"clerk": {"weightsOf": "tpu"}}, "no class in workers"),
        ({"api": {"replica": 1}}, "replica"),
        ({"workers": {"cuda": {"models": ["x' OR 'a' = 'a"]}}}, "does not match pattern"),
        ({"secretEnv": [{"name": "KEY", "value": "sk-1"}]}, "value"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        render(values)


def flat(values: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their paths; those whose keys the user chooses are one value."""
    found: dict[str, Any] = {}
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    for name, value in values.items():
        own = schema["properties"][name]
        own = definitions["worker"] if own.get("$ref", "").endswith("/worker") else own
        if isinstance(value, dict) and "properties" in own:
            found |= flat(value, own, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def test_the_table_of_values_is_that_of_the_values() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.+) \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    shown = {name: json.loads(default) for name, default, _ in rows}
    assert shown == flat(values, schema)
