"""What is handed to KubeRay and to `ray up` is what their published schemas allow, and asks for what a run needs.

kuberay/ holds the schemas of the custom resources of KubeRay 1.7 (ray.io/v1, Apache-2.0), without their descriptions.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray.config.compose import compose
from capo_ray.doctor.software import pins
from capo_ray.planning.plan import plan_for

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "launch" / "kubernetes"
KINDS = ("rayjob", "raycluster")
RAY_UP = ("ray_up_aws", "ray_up_hosts")


def manifest(kind: str) -> dict[str, Any]:
    return dict(yaml.safe_load((KUBERNETES / f"{kind}.yaml").read_text()))


def cluster_of(kind: str) -> dict[str, Any]:
    spec = manifest(kind)["spec"]
    return dict(spec["rayClusterSpec"] if kind == "rayjob" else spec)


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not name, as an API server with strict validation does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = bool(schema.pop("x-kubernetes-preserve-unknown-fields", False))
    return schema


def faults(document: dict[str, Any], kind: str) -> list[str]:
    from jsonschema import Draft4Validator

    published = json.loads(gzip.decompress((Path(__file__).parent / "kuberay" / f"{kind}.json.gz").read_bytes()))
    schema = closed(published)
    schema["properties"]["metadata"] = {"type": "object"}
    return [f"{'.'.join(map(str, one.path))}: {one.message}" for one in Draft4Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_keeps_the_published_schema(kind: str) -> None:
    document = manifest(kind)
    assert (document["apiVersion"], document["kind"].lower()) == ("ray.io/v1", kind)
    assert faults(document, kind) == []


def test_the_schema_refuses() -> None:
    document = manifest("rayjob")
    document["spec"]["entrypont"] = document["spec"].pop("entrypoint")
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 3
    document["spec"]["ttlSecondsAfterFinished"] = "soon"
    told = faults(document, "rayjob")
    assert len(told) == 3
    assert any(one.endswith("Additional properties are not allowed ('entrypont' was unexpected)") for one in told)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cluster_is_what_the_run_needs(kind: str) -> None:
    """The experiment that is asked for fits, with Ray's version of the lock, as no root, with shared memory."""
    cluster = cluster_of(kind)
    assert cluster["rayVersion"] == pins("gpu")["ray"]
    (workers,) = cluster["workerGroupSpecs"]
    plan = plan_for(compose(["+experiment=llama3b_intersection"]))
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    assert workers["replicas"] * limits["nvidia.com/gpu"] >= plan.needs("GPU")
    assert workers["replicas"] * int(limits["cpu"]) >= plan.needs("CPU")
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert volumes == mounts.keys() and {"/dev/shm", "/shared"} == set(mounts.values())
        assert re.fullmatch(r"[\w./-]+:[\d.]+-gpu", pod["containers"][0]["image"])


def test_the_job_asks_for_a_run() -> None:
    spec = manifest("rayjob")["spec"]
    env, nodes, script, *arguments = shlex.split(spec["entrypoint"])
    pods = 1 + spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert (env, nodes, script) == ("env", f"NODES={pods}", "/capo_ray/launch/run.sh")
    assert compose(arguments).run_dir == "/shared/runs/first"
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_its_configuration(name: str) -> None:
    """Completed and checked as `ray up` does it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "launch" / f"{name}.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="clustername"):
        validate_config(prepare_config(config | {"clustername": "x"}))
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert sum("ray start --head --port=6379" in line for line in starts) == 1
    assert sum("ray start --address=$RAY_HEAD_IP:6379" in line for line in starts) == 1
    if "docker" in config:  # into which Ray's launcher copies files by these
        image = (ROOT / "docker" / "Dockerfile.gpu").read_text()
        assert " openssh-client " in image and " rsync " in image
    else:  # a job is `python -m ...`, found where Ray was started
        assert all(line.startswith("source /shared/capo_ray/.venv/bin/activate; ") for line in starts)


def test_hosts_are_counted() -> None:
    config = yaml.safe_load((ROOT / "launch" / "ray_up_hosts.yaml").read_text())
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
