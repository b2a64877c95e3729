"""The files of cluster/ against the schemas that those who read them publish."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from raybrew.config import DistillJob
from raybrew.config.job_file import load_job
from tests.cluster.schemas import kuberay_schema

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERAY = ("raycluster.yaml", "rayjob.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def ray_up_schema() -> dict[str, Any]:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_manifest(name):
    manifest = read(f"kuberay/{name}")
    jsonschema.validate(manifest, kuberay_schema(manifest["kind"]))


def test_kuberays_schema_refuses_what_it_does_not_know():
    manifest = read("kuberay/raycluster.yaml")
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(manifest, kuberay_schema("RayCluster"))
    manifest = read("kuberay/rayjob.yaml")
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0] = {
        "image": "raybrew"
    }
    with pytest.raises(jsonschema.ValidationError, match="'name' is a required property"):
        jsonschema.validate(manifest, kuberay_schema("RayJob"))


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_up_takes_the_file(name):
    config = read(name)
    jsonschema.validate(config, ray_up_schema())
    assert config["head_node_type"] in config["available_node_types"]
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**config, "max_worker": 1}, ray_up_schema())


@pytest.mark.parametrize("name", KUBERAY)
def test_teachers_and_students_have_groups_of_their_own_that_scale_from_nothing(name):
    spec = cluster_spec(read(f"kuberay/{name}"))
    assert spec["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"teachers", "students"}
    for group, resource in (("teachers", "teacher_node"), ("students", "student_node")):
        assert groups[group]["minReplicas"] == 0 < groups[group]["maxReplicas"]
        # Ray reads the value as JSON inside of a quoted argument of `ray start`.
        given = json.loads(json.loads(groups[group]["rayStartParams"]["resources"]))
        assert given == {resource: 1000}
        volumes = groups[group]["template"]["spec"]["volumes"]
        claim = read("kuberay/storage.yaml")["metadata"]["name"]
        assert claim in [v["persistentVolumeClaim"]["claimName"] for v in volumes]
    assert groups["students"]["template"]["spec"]["nodeSelector"]


def test_the_manifests_agree_on_the_cluster():
    one, other = (cluster_spec(read(f"kuberay/{name}")) for name in KUBERAY)
    assert one == other
    image = one["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert read("aws.yaml")["docker"]["image"] == read("gcp.yaml")["docker"]["image"] == image
    assert f"ray:{one['rayVersion']}-" in (CLUSTER / "Dockerfile").read_text()


def test_the_first_job_of_the_readme_is_one(tmp_path):
    text = (CLUSTER / "job.yaml").read_text(encoding="utf-8")
    job = load_job(DistillJob, CLUSTER / "job.yaml")
    assert all("teacher_node" in (teacher.resources or {}) for teacher in job.job.teachers)
    assert "student_node" in job.scaling["resources_per_worker"]
    # Everything that the nodes share lies on what they share.
    assert job.job.labels.store.startswith("/shared/")
    assert job.run["storage_path"].startswith("/shared/")
    assert "\t" not in text


def test_the_slurm_script_is_a_script():
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-n", str(CLUSTER / "slurm.sh")], check=True)
    refused = subprocess.run(
        [bash, str(CLUSTER / "slurm.sh")], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "usage: sbatch slurm.sh JOB.yaml" in refused.stderr
