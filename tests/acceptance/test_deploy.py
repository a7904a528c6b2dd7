"""The files of deploy/ are valid for their platforms, hardened, and set what pgstash knows."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import HelmValuesError
from helm_python.chart import Chart, lint

from pgstash import __version__
from support.cli import environment, run_pgstash

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm" / "pgstash"
SYSTEMD = DEPLOY / "systemd"
KUBERNETES_VERSION = "1.33"
PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")
# What the user fills in, in place of an empty value.
FILLED = {
    "DATABASE_URL": "postgresql://backup:secret@db.example.com/shop",
    "S3_ENDPOINT": "https://s3.example.com",
    "S3_BUCKET": "backups",
    "S3_ACCESS_KEY_ID": "key",
    "S3_SECRET_ACCESS_KEY": "secret-of-the-key",
    "BACKUP_ENCRYPTION_KEY": "0123456789abcdef0123456789abcdef",
}


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def assignments(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def of_compose() -> dict[str, str]:
    found: dict[str, str] = documents(DEPLOY / "compose.yaml")[0]["services"]["pgstash"][
        "environment"
    ]
    return found


def of_render() -> dict[str, str]:
    [service] = documents(DEPLOY / "render" / "render.yaml")[0]["services"]
    return {each["key"]: each.get("value", "") for each in service["envVars"]}


def of_fly() -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((DEPLOY / "fly" / "fly.toml").read_text())["env"]
    return FILLED | found


def of_kubernetes() -> dict[str, str]:
    found: dict[str, str] = documents(KUBERNETES / "settings.yaml")[0]["data"]
    return found


def of_chart() -> dict[str, str]:
    found: dict[str, str] = documents(CHART / "values.yaml")[0]["settings"]
    return FILLED | found


def of_railway() -> dict[str, str]:
    found = assignments(DEPLOY / "railway" / "variables.env")
    assert found.pop("PORT") == found["HEALTH_PORT"]  # Railway's own variable
    return found


def of_systemd() -> dict[str, str]:
    return assignments(SYSTEMD / "pgstash.env.example")


@pytest.mark.parametrize(
    "of_platform",
    [of_compose, of_fly, of_render, of_kubernetes, of_chart, of_railway, of_systemd],
)
def test_pgstash_knows_and_accepts_each_setting(of_platform: Any, tmp_path: Path) -> None:
    given = of_platform()
    env = {}
    for name, value in given.items():
        base = name.removesuffix("_FILE")
        filled = re.sub(r"^\$\{.*\}$", "", value) or FILLED[base]
        filled = re.sub(r"\$\{.*\}", "secret", filled)
        if name != base:
            (tmp_path / base).write_text(FILLED[base])
            filled = str(tmp_path / base)
        env[name] = filled
    done = run_pgstash(["config", "from-env"], environment(**env))
    assert (done.returncode, done.stderr) == (0, "")
    written = tomllib.loads(done.stdout)
    assert written["servers"], done.stdout
    known = done.stdout.lower()
    assert [name for name in given if name.removesuffix("_FILE").lower() not in known] == []


def pods() -> Iterator[tuple[str, Any]]:
    """Yield each pod that a file describes, and each that the chart does, with its name."""
    yield (
        "deployment.yaml",
        documents(KUBERNETES / "deployment.yaml")[0]["spec"]["template"]["spec"],
    )
    [job] = documents(KUBERNETES / "cronjob.yaml")
    yield "cronjob.yaml", job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for name, values in VALUES.items():
        for each in rendered(values):
            if each["kind"] == "Deployment":
                yield name, each["spec"]["template"]["spec"]
            if each["kind"] == "CronJob":
                yield name, each["spec"]["jobTemplate"]["spec"]["template"]["spec"]


VALUES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "secrets": {"secrets": FILLED, "image": {"digest": "sha256:" + "0" * 64}},
    "existing": {"existingSecret": {"name": "mine", "keys": ["DATABASE_URL"]}},
    "everything": {
        "configFile": '[servers.eu]\ndatabase_url = { file = "/etc/pgstash/secrets/EU_URL" }\n',
        "podLabels": {"team": "data"},
        "podAnnotations": {"team": "data"},
        "image": {"pullSecrets": [{"name": "registry"}]},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "serviceAccount": {"annotations": {"role": "backup"}},
    },
    "cron": {
        "mode": "cron",
        "configFile": "[servers.eu]\n",
        "cronJobs": [
            {"name": "shop", "schedule": "0 3 * * *", "args": ["once", "--job", "eu/shop"]},
            {"name": "drill", "schedule": "0 5 * * 0", "args": ["drill", "--all-jobs"]},
        ],
    },
}


def rendered(values: Mapping[str, Any]) -> list[Any]:
    with Chart.load(CHART) as chart:
        texts = chart.render(values=dict(values), name="nightly", namespace="backups")
    found = [each for text in texts.values() for each in yaml.safe_load_all(text)]
    return [each for each in found if each is not None]


def test_manifests_are_what_kubernetes_expects() -> None:
    files = [path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"]
    assert len(files) >= 7
    for path in files:
        for each in documents(path):
            kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)


def test_kustomize_finds_each_file() -> None:
    [kustomization] = documents(KUBERNETES / "kustomization.yaml")
    assert all((KUBERNETES / name).is_file() for name in kustomization["resources"])
    [image] = kustomization["images"]
    assert (image["name"], image["newTag"]) == ("pgstash", __version__)


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_makes_what_kubernetes_expects(name: str) -> None:
    found = rendered(VALUES[name])
    for each in found:
        kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(names)) == len(names)
    assert ("NetworkPolicy", "nightly-pgstash") in names
    if name == "cron":
        assert ("CronJob", "nightly-pgstash-shop") in names
        assert "Deployment" not in dict(names)


def test_the_chart_is_of_this_version_and_without_problems() -> None:
    report = lint(CHART)
    assert report["errors"] == []
    [chart] = documents(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize(
    "values", [{"setings": {}}, {"mode": "both"}, {"cronJobs": [{"name": "x"}]}, {"healthPort": 80}]
)
def test_the_chart_refuses_what_it_does_not_know(values: dict[str, Any]) -> None:
    with Chart.load(CHART) as chart, pytest.raises(HelmValuesError):
        chart.validate_schema(values)


def test_the_chart_puts_no_secret_into_a_pod() -> None:
    pod = next(each for each in rendered(VALUES["secrets"]) if each["kind"] == "Deployment")
    assert not [value for value in FILLED.values() if len(value) > 10 and value in json.dumps(pod)]


def test_each_pod_is_restricted() -> None:
    """As the level `restricted` of Kubernetes demands, and with a root that is only read."""
    found = list(pods())
    assert len(found) >= 7
    for name, pod in found:
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 10001, name  # as in the Dockerfile
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}, name
        done = run_pgstash([container["args"][0], "--help"], environment())
        assert done.returncode == 0, name


def test_each_service_is_probed_where_it_answers() -> None:
    served = [
        (name, pod["containers"][0]) for name, pod in pods() if name not in {"cronjob.yaml", "cron"}
    ]
    assert len(served) >= 4
    for name, container in served:
        assert container["args"] == ["backup"], name
        [port] = container["ports"]
        given = {each["name"]: each["value"] for each in container["env"]}
        assert given["HEALTH_PORT"] == str(port["containerPort"]), name
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}, name


def test_each_secret_that_a_setting_names_is_in_the_example() -> None:
    [secret] = documents(KUBERNETES / "secret.example.yaml")
    files = {value for name, value in of_kubernetes().items() if name.endswith("_FILE")}
    [container] = documents(KUBERNETES / "deployment.yaml")[0]["spec"]["template"]["spec"][
        "containers"
    ]
    folder = next(each for each in container["volumeMounts"] if each["name"] == "secrets")
    assert files == {f"{folder['mountPath']}/{name}" for name in secret["stringData"]}


def test_images_are_pinned() -> None:
    [compose] = documents(DEPLOY / "compose.yaml")
    for name, service in compose["services"].items():
        assert "build" in service or PINNED.search(service["image"]), name
    bases = re.findall(r"(?m)^FROM (\S+)", (REPOSITORY / "Dockerfile").read_text())
    assert bases
    assert [base for base in bases if not PINNED.search(base)] == []


def test_compose_makes_its_secrets_once(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "compose-secrets", tmp_path)
    command = [tmp_path / "compose-secrets"]
    subprocess.run(command, check=True, capture_output=True)
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    wanted = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    secrets = assignments(made)
    assert secrets.keys() == wanted
    assert min(map(len, secrets.values())) >= 64
    again = subprocess.run(command, check=False, capture_output=True)
    assert again.returncode != 0
    assert assignments(made) == secrets


def test_files_of_platforms_are_well_formed_and_probe_the_health_port() -> None:
    railway = json.loads((DEPLOY / "railway" / "railway.json").read_text())
    assert railway["deploy"]["healthcheckPath"] == "/healthz"
    assert (REPOSITORY / railway["build"]["dockerfilePath"]).is_file()
    fly = tomllib.loads((DEPLOY / "fly" / "fly.toml").read_text())
    check = fly["checks"]["alive"]
    assert (check["path"], str(check["port"])) == ("/healthz", fly["env"]["HEALTH_PORT"])
    [heroku] = documents(DEPLOY / "heroku" / "heroku.yml")
    [render] = documents(DEPLOY / "render" / "render.yaml")
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert [heroku["build"]["docker"]["worker"]] == [render["services"][0]["dockerfilePath"][2:]]
    for argument in (*heroku["build"]["config"], *fly["build"]["args"]):
        assert f"ARG {argument}=" in dockerfile


def units() -> list[Path]:
    return sorted(path for path in SYSTEMD.iterdir() if path.suffix in {".service", ".timer"})


def test_units_run_commands_of_pgstash_and_both_services_are_hardened_alike() -> None:
    hardening = []
    for path in SYSTEMD.glob("*.service"):
        unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(path)
        _, command = unit["Service"]["ExecStart"].split()
        assert run_pgstash([command, "--help"], environment()).returncode == 0
        text = path.read_text()
        hardening.append(text[text.index("DynamicUser=") :].split("\n\n")[0].strip())
    assert len(hardening) == 2
    assert hardening[0] == hardening[1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units_and_rates_them_as_safe(tmp_path: Path) -> None:
    for path in units():
        text = path.read_text().replace("/opt/pgstash/bin/pgstash", "/bin/true")
        (tmp_path / path.name).write_text(text)
    names = ["pgstash.service", "pgstash-once@shop.service", "pgstash-once@shop.timer"]
    for name in names[1:]:
        (tmp_path / name).symlink_to(name.replace("shop", ""))
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in names[:2]:
        rate = [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--threshold=20",
            str(tmp_path / name),
        ]
        assert subprocess.run(rate, capture_output=True, check=False).returncode == 0, name
