"""The files that schedulers and orchestrators read: whether they would be understood, and what they ask for exists."""

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kgtrace_server.cli import parser as cli
from kgtrace_server.http.metrics import Metrics
from kgtrace_server.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker"
SYSTEM_UNITS = Path("/usr/lib/systemd/system")
USER = 10001
"""Of both images."""
KUBERNETES = "1.30"
"""An old version: what it understands, later ones do."""
HARDENED = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SERVICE_KEYS = {
    *("build", "restart", "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period", "environment"),
    *("ports", "volumes", "profiles", "entrypoint", "command", "image", "depends_on"),
}
"""Those of the Compose specification that are used; any other is a slip of the pen."""


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The documents of ``kubernetes.yaml``, by kind."""
    found = {document["kind"]: document for document in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
    assert sorted(found) == ["ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "Service"]
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """``compose.yaml``."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return content


def pods(manifests: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield manifests["Deployment"]["spec"]["template"]["spec"]
    yield manifests["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_kubernetes_understands_every_field(manifests: dict[str, Any]) -> None:
    """Each document is what the published schema of its kind allows, without any field that it does not know."""
    for document in manifests.values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pods_need_no_privilege(manifests: dict[str, Any]) -> None:
    """They run as the user of the image, on read-only file systems, and mount only what they declare."""
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == USER
        assert not pod["automountServiceAccountToken"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"] == HARDENED
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_probes_and_selectors_lead_somewhere(manifests: dict[str, Any]) -> None:
    """Probes ask routes that there are, on a port that there is; the service selects the pods of the deployment."""
    deployment, service = manifests["Deployment"]["spec"], manifests["Service"]["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    paths = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {get["path"] for get in paths.values()} == {"/livez", "/readyz"}
    assert {get["port"] for get in paths.values()} == set(ports)
    assert {port["targetPort"] for port in service["ports"]} == set(ports)
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"] == deployment["selector"]["matchLabels"] == labels
    assert set(ports.values()) == {8080}
    assert container["lifecycle"]["preStop"]["exec"]["command"][0] == "sleep"


def test_the_autoscaler_watches_a_metric_that_there_is(manifests: dict[str, Any]) -> None:
    """It scales the deployment by the metric that the adapter makes of two that the service has."""
    scaler, deployment = manifests["HorizontalPodAutoscaler"]["spec"], manifests["Deployment"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # it would be set anew whenever the file is applied
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (watched,) = scaler["metrics"]
    assert watched["pods"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="default"')
    promql_parser.parse(query)
    promql_parser.parse(rule["seriesQuery"])
    families = text_string_to_metric_families(Metrics().text().decode())
    samples = {sample.name for family in families for sample in family.samples}
    named = set(re.findall(r"kgtrace_\w+", query + rule["seriesQuery"]))
    assert named == {"kgtrace_queue_seconds_sum", "kgtrace_queue_seconds_count"}
    assert named <= samples
    assert "KGTRACE_PORT=8080" in (FOLDER / "Dockerfile").read_text()


def test_the_nightly_job_runs_alone_and_calls_what_there_is(manifests: dict[str, Any]) -> None:
    """The script is mounted where it is called, and the command line takes its arguments."""
    job = manifests["CronJob"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (name,) = (volume["name"] for volume in pod["volumes"] if volume.get("configMap"))
    (script,) = manifests["ConfigMap"]["data"]
    assert container["command"] == ["sh", f"{mounts[name]}/{script}"]
    lines = [shlex.split(line) for line in manifests["ConfigMap"]["data"][script].splitlines()]
    calls = [words[1:] for words in lines if words[0] == "kgtrace"]
    assert [words[0] for words in calls] == ["build", "prune"]
    for words in calls:
        cli.parser().parse_args([*words, "--index", "/index"])


def test_services_stop_after_their_last_answer(manifests: dict[str, Any], compose: dict[str, Any]) -> None:
    """Whoever stops the service waits for longer than a request may take."""
    deadline = Settings().deadline
    unit = (FOLDER / "systemd" / "kgtrace.service").read_text()
    assert manifests["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > deadline
    assert float(compose["services"]["server"]["stop_grace_period"].removesuffix("s")) > deadline
    assert float(unit.partition("TimeoutStopSec=")[2].split()[0]) > deadline


def test_compose_asks_for_what_there_is(compose: dict[str, Any]) -> None:
    """Its services build targets of the Dockerfile, mount what it declares, and set what the service reads."""
    assert set(compose) == {"services", "volumes"}
    dockerfile = (FOLDER / "Dockerfile").read_text()
    known = {f"KGTRACE_{setting.name.upper()}" for setting in dataclasses.fields(Settings)}
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (FOLDER / source).exists()
    for service in (compose["services"][name] for name in ("server", "nightly")):
        assert f"FROM base AS {service['build']['target']}\n" in dockerfile
        assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert set(service.get("environment", ())) <= known
    assert compose["services"]["nightly"]["entrypoint"] == ["sh", "/nightly.sh"]


def test_monitoring_watches_the_service(compose: dict[str, Any]) -> None:
    """Prometheus asks the port that the service publishes, Grafana asks Prometheus, and finds the dashboard."""
    services = compose["services"]
    (scraped,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"]
    assert (scraped["names"], scraped["type"]) == (["server"], "A")
    assert f"KGTRACE_PORT={scraped['port']}" in (FOLDER / "Dockerfile").read_text()
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (boards,) = yaml.safe_load((provisioning / "dashboards" / "kgtrace.yml").read_text())["providers"]
    assert f"./grafana/kgtrace.json:{boards['options']['path']}/kgtrace.json:ro" in services["grafana"]["volumes"]
    assert {service for service in services if services[service].get("profiles") == ["monitoring"]} == {
        "prometheus",
        "grafana",
    }


def test_the_proxy_asks_the_service(compose: dict[str, Any]) -> None:
    """It mounts the settings, publishes the port that these bind, and finds replicas by the name of the service."""
    proxy = compose["services"]["proxy"]
    settings = (FOLDER / "haproxy.cfg").read_text()
    (volume,) = proxy["volumes"]
    assert volume.startswith("./haproxy.cfg:")
    (published,) = proxy["ports"]
    assert f"bind :{published.rpartition(':')[2]}\n" in settings
    assert " server:8080 " in settings
    assert "server" in compose["services"]
    assert "ports" not in compose["services"]["server"]  # one port cannot be several replicas'
    assert float(settings.partition("timeout server ")[2].partition("s")[0]) > Settings().deadline


def test_haproxy_understands_every_line() -> None:
    """It says so itself."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    command = ["haproxy", "-c", "-f", str(FOLDER / "haproxy.cfg")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Configuration file is valid\n")


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """It finds the programs, and no key that it does not know."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = sorted((FOLDER / "systemd").iterdir())
    for folder, files in (("etc/systemd/system", units), ("usr/lib/systemd/system", SYSTEM_UNITS.glob("*.target"))):
        (tmp_path / folder).mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, tmp_path / folder / path.name)
    for program in ("nightly.sh", "bin/kgtrace"):
        path = tmp_path / "opt" / "kgtrace" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    command = ["systemd-analyze", "verify", f"--root={tmp_path}", *(unit.name for unit in units)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_gpus_are_reserved_where_kgtrace_computes(compose: dict[str, Any]) -> None:
    """For services that there are, with FAISS's GPU build in their image, and on no device that a command chooses."""
    on_gpu = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())["services"]
    assert set(on_gpu) == {name for name, service in compose["services"].items() if "build" in service}
    for name, service in on_gpu.items():
        assert service["build"]["args"] == {"EXTRA": "gpu"}
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert "--device" not in str(compose["services"][name])
    assert "ARG EXTRA=" in (FOLDER / "Dockerfile").read_text()
