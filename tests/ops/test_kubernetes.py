"""The Kubernetes examples: what they name exists, and they agree with each other."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.ops.deployed import commands, settings_of, takes
from tests.ops.expressions import OPS, ROOT

FOLDER = OPS / "kubernetes"
ROLES = ("serve", "consume", "relay", "sweep")
WORKLOADS = (*ROLES, "migrate")

Object = dict[str, Any]


def objects() -> list[Object]:
    """Every object of the folder."""
    return [
        msgspec.yaml.decode(part)
        for path in sorted(FOLDER.glob("*.yaml"))
        for part in path.read_text(encoding="utf-8").split("\n---\n")
    ]


def of_kind(kind: str) -> dict[str, Object]:
    """The objects of a kind by their names."""
    return {each["metadata"]["name"]: each for each in objects() if each["kind"] == kind}


def pod_of(role: str) -> Object:
    """The pod of a role."""
    kind = "Job" if role == "migrate" else "Deployment"
    pod: Object = of_kind(kind)[f"pqs-{role}"]["spec"]["template"]["spec"]
    return pod


def container_of(role: str) -> Object:
    """The only container of a role's pod."""
    [container] = pod_of(role)["containers"]
    found: Object = container
    return found


def environment_of(role: str) -> dict[str, str]:
    """The variables of a role's container."""
    container = container_of(role)
    shared = {
        name: value
        for source in container.get("envFrom", ())
        for name, value in of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"].items()
    }
    return shared | {each["name"]: each["value"] for each in container.get("env", ())}


def test_each_role_has_a_workload_and_no_other() -> None:
    """There is one Deployment for each role, and one Job for the migration."""
    assert set(of_kind("Deployment")) == {f"pqs-{role}" for role in ROLES}
    assert set(of_kind("Job")) == {"pqs-migrate"}


@pytest.mark.parametrize("role", WORKLOADS)
def test_the_command_exists(role: str) -> None:
    """Each container runs a command of `pqs`, with options that it has."""
    program, *words = container_of(role)["command"]
    assert program == "pqs"
    assert words[0] == role
    assert takes(words)


@pytest.mark.parametrize("role", WORKLOADS)
def test_the_settings_are_accepted(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is a setting with a value that the settings accept, and its command has that setting."""
    environment = environment_of(role)
    assert settings_of(environment, tmp_path, monkeypatch).database_url_file is not None
    assert set(environment) <= commands(role)


@pytest.mark.parametrize("role", WORKLOADS)
def test_secrets_are_files(role: str) -> None:
    """No variable holds a secret: each names a file below a mounted secret, which has that key."""
    pod, container = pod_of(role), container_of(role)
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"] if each.get("readOnly")}
    volumes = {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    environment = environment_of(role)
    files = {value for name, value in environment.items() if name.endswith("_FILE")}
    assert not {"PQS_DATABASE_URL", "PQS_KAFKA_PASSWORD"} & set(environment)
    for file in files:
        folder, _, key = file.rpartition("/")
        assert key in of_kind("Secret")[volumes[mounted[folder]]]["stringData"]
    assert {file.rpartition("/")[0] for file in files} == set(mounted)


def test_probes_call_the_port_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes, Service, annotations and the setting name one port; readiness asks /readyz, liveness does not."""
    container, settings = container_of("serve"), settings_of(environment_of("serve"), tmp_path, monkeypatch)
    [port] = container["ports"]
    assert port["containerPort"] == settings.port
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in paths.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in paths.values()} == {port["name"]}
    [service] = of_kind("Service").values()
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    annotations = of_kind("Deployment")["pqs-serve"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert settings.host == "0.0.0.0"


def test_pods_have_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod is not killed before PQS_DRAIN and a statement's time-out have passed, nor drained too early."""
    settings = settings_of(environment_of("serve"), tmp_path, monkeypatch)
    probe = container_of("serve")["readinessProbe"]
    assert pod_of("serve")["terminationGracePeriodSeconds"] >= settings.drain + settings.statement_timeout + 10
    assert settings.drain > probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize("role", ROLES)
def test_labels_lead_to_the_pods(role: str) -> None:
    """A Deployment and its budget select the pods that it makes; a pod's role is in its labels."""
    spec = of_kind("Deployment")[f"pqs-{role}"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == {"app": "pqs", "role": role}
    assert spec["selector"]["matchLabels"] == labels
    budget = of_kind("PodDisruptionBudget")[f"pqs-{role}"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert spec["replicas"] > budget["maxUnavailable"]


@pytest.mark.parametrize("role", WORKLOADS)
def test_pods_run_as_the_images_user(role: str) -> None:
    """A pod is not root, writes nowhere but in /tmp, and runs as the user that the Dockerfile adds."""
    pod, container = pod_of(role), container_of(role)
    assert f"--uid {pod['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")} <= {"/tmp"}
