"""KubeRay's published schema of its resources, kept small enough for the repository.

    ray.io_rayclusters.yaml, ray.io_rayjobs.yaml of KubeRay v1.7.0 (Apache-2.0) ──► kuberay.json.xz

`python -m tests.cluster.schemas FOLDER` makes it from a folder with KubeRay's own files
(helm-chart/kuberay-operator/crds of its repository). Descriptions are left out, nothing else.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = Path(__file__).with_name("kuberay.json.xz")
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def kuberay_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a kind; a key that KubeRay doesn't know is refused."""
    return _strict(json.loads(lzma.decompress(KEPT.read_bytes()))[kind])


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: _strict(value) for key, value in node.items() if not key.startswith("x-")}
    # Kubernetes drops what a schema doesn't know; here it is a mistake.
    if isinstance(found.get("properties"), dict) and "type" in found:
        open_ended = bool(node.get("x-kubernetes-preserve-unknown-fields"))
        found.setdefault("additionalProperties", open_ended)
    return found


def _without_descriptions(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_descriptions(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_descriptions(value)
        for key, value in node.items()
        if not (key == "description" and isinstance(value, str))
    }


def _published(path: Path) -> dict[str, Any]:
    versions = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["versions"]
    (stored,) = [each for each in versions if each["storage"]]
    return _without_descriptions(stored["schema"]["openAPIV3Schema"])


if __name__ == "__main__":
    source = Path(sys.argv[1])
    schemas = {kind: _published(source / name) for kind, name in FILES.items()}
    KEPT.write_bytes(lzma.compress(json.dumps(schemas, sort_keys=True).encode(), preset=9))
