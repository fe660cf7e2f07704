"""The manifests: as Kubernetes' schemas want them, and as the service is."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Metrics
from service.settings import Settings, check_names

kubernetes_validate = pytest.importorskip("kubernetes_validate")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.32"
Manifest = dict[str, Any]


def read(*parts: str) -> list[Manifest]:
    text = FOLDER.joinpath(*parts).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def built(name: str) -> dict[str, Manifest]:
    """What `kubectl apply -k` would apply, by kind."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl, which builds a kustomization")
    command = [kubectl, "kustomize", str(FOLDER / name)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {found["kind"]: found for found in yaml.safe_load_all(text)}


def validate(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def pod(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_each_file_is_of_its_schema(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        group = manifest["apiVersion"].partition("/")[0]
        if group not in ("kustomize.config.k8s.io", "ray.io"):
            if manifest["kind"] == "Deployment":  # its labels come from the kustomization
                labels = {"app.kubernetes.io/name": "noneq"}
                manifest["spec"]["selector"] = {"matchLabels": labels}
                manifest["spec"]["template"]["metadata"]["labels"] = labels
            validate(manifest)


@pytest.mark.parametrize("name", ["base", "gpu"])
def test_what_is_applied_is_of_its_schema(name: str) -> None:
    found = built(name)
    for manifest in found.values():
        validate(manifest)
    assert set(found) == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    }
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Service"]["spec"]["selector"],
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (source, *_) = pod(found["Deployment"])["containers"][0]["envFrom"]
    assert source["configMapRef"]["name"] == found["ConfigMap"]["metadata"]["name"]
    limits = pod(found["Deployment"])["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == (name == "gpu")
    assert found["ConfigMap"]["data"].get("NONEQ_DEVICE") == ("cuda" if name == "gpu" else None)


def test_a_mistake_is_found() -> None:
    (manifest,) = read("base", "service.yaml")
    manifest["spec"]["ports"][0]["targetPorts"] = manifest["spec"]["ports"][0].pop("targetPort")
    with pytest.raises(kubernetes_validate.ValidationError, match="targetPorts"):
        validate(manifest)


def test_the_manifests_know_the_service() -> None:
    (kustomization,) = read("base", "kustomization.yaml")
    (deployment,) = read("base", "deployment.yaml")
    (autoscaler,) = read("base", "autoscaler.yaml")
    values = dict(one.split("=") for one in kustomization["configMapGenerator"][0]["literals"])
    check_names(values)
    settings = Settings.model_validate(
        {k.removeprefix("NONEQ_").lower(): v for k, v in values.items()}
    )
    (container,) = pod(deployment)["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(deployment)["terminationGracePeriodSeconds"] > settings.drain_seconds + pause
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")} == {
        "/health/ready"
    }
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metric = autoscaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"\n{metric} ".encode() in b"\n" + Metrics().render()
    assert metric in (FOLDER / "metrics.yaml").read_text(encoding="utf-8")


def test_the_cluster_of_rays_runs_the_application() -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'noneq[ray]'")
    from ray import __version__
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray.app import Arguments

    (service,) = read("ray", "rayservice.yaml")
    cluster, text = service["spec"]["rayClusterConfig"], service["spec"]["serveConfigV2"]
    beside = (FOLDER.parent / "ray" / "config.yaml").read_text(encoding="utf-8")
    for config in (text, beside):
        (application,) = ServeDeploySchema.model_validate(yaml.safe_load(config)).applications
        assert application.import_path == "deploy.ray.app:app"
        arguments = Arguments.model_validate(application.args)
        check_names(application.runtime_env["env_vars"])
    pins = (FOLDER.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={cluster['rayVersion']}\n" in pins
    assert cluster["rayVersion"] == __version__
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        template = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "ray"},
            **group["template"],
        }
        validate(template)
    (container,) = workers["template"]["spec"]["containers"]
    assert float(container["resources"]["requests"]["cpu"]) >= arguments.cpus
