"""`docker/kuberay.yaml` as Kubernetes and KubeRay would check it; there is no cluster here.

Pods and claims are checked against Kubernetes' own schema (tests/data/kubernetes). The fields of KubeRay's v1 API are
listed here, in our own words: no package brings its CRDs. With QDTUNE_KUBERAY_CRDS, a folder that holds
`ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml` of KubeRay, the file is checked against these, too.
"""

import copy
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from qdtune.commands import launch
from qdtune.spec.sweep_file import load

ROOT = Path(__file__).parent.parent
KUBERNETES = json.loads((ROOT / "tests/data/kubernetes/pod.json").read_text())["$defs"]
DOCUMENTS = list(YAML(typ="safe").load_all((ROOT / "docker/kuberay.yaml").read_text()))
CLAIM, CLUSTER, JOB = DOCUMENTS
CORE = "#/$defs/io.k8s.api.core.v1."
TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = {"$ref": f"{CORE}PodTemplateSpec"}


def group(required, **properties):
    """The schema of a group that knows these keys and no others."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


# Of KubeRay's RayClusterSpec and RayJobSpec (1.5.1 and later), what the file may use.
HEAD = group("rayStartParams template", rayStartParams=TEXTS, template=POD, serviceType=TEXT, enableIngress=FLAG)
WORKERS = group(
    "groupName rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = group(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=group("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    suspend=FLAG,
    headServiceAnnotations=TEXTS,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = group(
    "",
    entrypoint=TEXT,
    clusterSelector=TEXTS,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=POD,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    runtimeEnvYAML=TEXT,
    suspend=FLAG,
)
META = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}


def ray_kind(kind, spec):
    """The schema of one of KubeRay's resources."""
    return group(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=META,
        spec=spec,
    )


KINDS = {
    "PersistentVolumeClaim": {"$ref": f"{CORE}PersistentVolumeClaim"},
    "RayCluster": ray_kind("RayCluster", RAY_CLUSTER),
    "RayJob": ray_kind("RayJob", RAY_JOB),
}


def faults(document):
    """What of a document its schema does not allow, with the path."""
    validator = Draft202012Validator(KINDS[document["kind"]] | {"$defs": KUBERNETES})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_every_document_is_allowed_by_its_schema(document):
    assert faults(document) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("spec.authOption", {}, "'authOption' was unexpected"),
        ("spec.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("spec.headGroupSpec.template.spec.volume", [], "'volume' was unexpected"),
        ("spec.headGroupSpec.template.spec.containers.0.securityContext.runAsNonRoot", "yes", "'yes' is not of type"),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.env.0.values", "1", "'values' was unexpected"),
    ],
)
def test_mistakes_are_seen(path, value, fault):
    document = copy.deepcopy(CLUSTER)
    *parts, last = path.split(".")
    place = document
    for part in parts:
        place = place[int(part) if isinstance(place, list) else part]
    place[last] = value
    assert fault in " ".join(faults(document))


@pytest.mark.skipif("QDTUNE_KUBERAY_CRDS" not in os.environ, reason="QDTUNE_KUBERAY_CRDS names no folder of CRDs")
@pytest.mark.parametrize("document", [CLUSTER, JOB], ids=lambda document: document["kind"])
def test_kuberay_itself_allows_it(document):
    file = Path(os.environ["QDTUNE_KUBERAY_CRDS"], f"ray.io_{document['kind'].lower()}s.yaml")
    versions = YAML(typ="safe").load(file.read_text())["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")

    def closed(part):  # as `kubectl apply --validate=strict` has it: no unknown keys
        if isinstance(part, dict):
            part = {key: closed(value) for key, value in part.items()}
            if isinstance(part.get("properties"), dict) and part.get("type") == "object":
                part.setdefault("additionalProperties", False)
        return [closed(one) for one in part] if isinstance(part, list) else part

    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    assert [error.message for error in Draft202012Validator(schema).iter_errors(document)] == []


def pods():
    """The pod specs of the file by name."""
    head, (worker,) = CLUSTER["spec"]["headGroupSpec"], CLUSTER["spec"]["workerGroupSpecs"]
    found = {"head": head, "worker": worker, "submitter": {"template": JOB["spec"]["submitterPodTemplate"]}}
    return {name: part["template"]["spec"] for name, part in found.items()}


@pytest.mark.parametrize("name", ["head", "worker", "submitter"])
def test_pods_are_guarded_as_the_containers_of_the_compose_file_are(name):
    pod = pods()[name]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (user,) = re.findall(r"^USER (\d+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    own = container["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
    assert {"/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert all("TOKEN" not in variable["name"] for variable in container["env"])  # KubeRay gives it


def test_the_cluster_wants_a_token_and_is_that_of_the_job():
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert CLUSTER["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert CLUSTER["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "docker/requirements.txt").read_text(), re.MULTILINE)
    assert CLUSTER["spec"]["rayVersion"] == locked
    images = {pod["containers"][0]["image"] for pod in pods().values()}
    assert len(images) == 1


def test_the_job_runs_a_sweep_of_the_image_and_keeps_its_results():
    python, module, package, verb, *rest = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, module, package, verb) == ("python", "-m", "qdtune", "launch")
    given = launch._arguments(rest)
    assert given.address == "auto"
    load(ROOT / given.sweep.lstrip("/"))  # the image has sweeps/ as /sweeps
    claims = {
        mount["mountPath"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pods()["head"]["volumes"]
        for mount in pods()["head"]["containers"][0]["volumeMounts"]
        if volume["name"] == mount["name"] and "persistentVolumeClaim" in volume
    }
    assert claims == {given.runs_dir: CLAIM["metadata"]["name"]}


def test_the_object_store_fits_into_shared_memory():
    for name, params in (
        ("head", CLUSTER["spec"]["headGroupSpec"]["rayStartParams"]),
        ("worker", CLUSTER["spec"]["workerGroupSpecs"][0]["rayStartParams"]),
    ):
        (limit,) = [volume["emptyDir"]["sizeLimit"] for volume in pods()[name]["volumes"] if volume["name"] == "shm"]
        assert int(params["object-store-memory"]) < int(limit.removesuffix("Gi")) * 2**30
