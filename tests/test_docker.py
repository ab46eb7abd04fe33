"""`docker/` as it is written: no engine is needed here, so this is what the files say, not what an engine does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"


def read(name):
    """A YAML file of `docker/`, `<<` merged."""
    return YAML(typ="safe").load((DOCKER / name).read_text())


def instructions(text):
    """The (name, rest) of every line of a Dockerfile, continued lines joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


BUILD = instructions((DOCKER / "Dockerfile").read_text())
FINAL = BUILD[max(i for i, (name, _) in enumerate(BUILD) if name == "FROM") :]
COMPOSE = read("compose.yaml")
SERVICES = COMPOSE["services"]
RAYS = ("head", "worker")
services = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


def option(service, name):
    """The value of `--name=value` of Ray's or Prometheus's command line."""
    words = [*service.get("entrypoint", []), *service["command"]]
    (found,) = [word.removeprefix(f"--{name}=") for word in words if word.startswith(f"--{name}=")]
    return found


def size(text):
    """Bytes of a size as Docker writes it."""
    return int(text[:-2]) * {"mb": 2**20, "gb": 2**30}[text[-2:]]


def test_image_is_pinned_by_digest_and_has_two_stages():
    """No digest can be known without asking a registry, so the file takes none but a pinned image."""
    sources = [rest.split()[0] for name, rest in BUILD if name == "FROM"]
    assert sources == ["${BASE}", "${BASE}"]
    assert BUILD[0] == ("ARG", "BASE"), "an image that is not pinned would be the default"
    guard = next(rest for name, rest in BUILD if name == "RUN")
    assert "*@sha256:*" in guard
    assert "exit 1" in guard
    pinned = re.findall(r"\b([A-Z]+)=(\S+:\S+)", (DOCKER / "pin").read_text())
    assert {name for name, _ in pinned} == {"BASE", "PROMETHEUS", "GRAFANA"}
    assert all(
        re.fullmatch(r"[a-z/]+:[a-z0-9.-]+", image.strip("; ")) and "latest" not in image for _, image in pinned
    )


DIGEST = "sha256:" + "a" * 64
BUILDX = '[ "$1 $2" = "buildx version" ] && exit 0\n'


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (f"{BUILDX}echo {DIGEST}", None),
        (f"{BUILDX}echo", "the registry must give a digest of debian:bookworm-slim, got ''"),
        (f"{BUILDX}echo 'no such host' >&2; exit 1", "no registry gives debian:bookworm-slim: this machine must"),
        ("echo 'unknown command: buildx' >&2; exit 1", "docker must have its plugin buildx, which asks the registry"),
        (None, "docker must be installed: it asks the registry for digests, and there is none in PATH"),
    ],
)
def test_pin_writes_digests_or_nothing(tmp_path, engine, said):
    (tmp_path / "bin").mkdir()
    for name in ("sh", "dirname", "mktemp", "rm", "mv", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    if engine:
        (tmp_path / "bin" / "docker").write_text(f"#!/bin/sh\n{engine}\n")
        (tmp_path / "bin" / "docker").chmod(0o700)
    pin = shutil.copy(DOCKER / "pin", tmp_path)
    done = subprocess.run([pin], env={"PATH": f"{tmp_path}/bin"}, capture_output=True, text=True, check=False)
    assert sorted(os.listdir(tmp_path)) == [*([] if said else [".env"]), "bin", "pin"]
    if said:
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"error: {said}")
    else:
        assert done.returncode == 0
        lines = (tmp_path / ".env").read_text().splitlines()
        named = [re.fullmatch(rf"([A-Z]+)=\S+:\S+@{DIGEST}", line)[1] for line in lines]
        assert named == ["BASE", "PROMETHEUS", "GRAFANA"]


def certs(*arguments, path=os.environ["PATH"]):
    line = [DOCKER / "certs", *map(str, arguments)]
    return subprocess.run(line, env={"PATH": path}, capture_output=True, text=True, check=False)


def test_certificates_are_for_one_node_each_and_for_their_user_alone(tmp_path):
    folder = tmp_path / "certs"
    assert certs(folder, "127.0.0.1", "node-2", "127.0.0.1").returncode == 0
    authority = (folder / "ca.key").read_bytes(), (folder / "ca.crt").read_bytes()
    assert certs(folder, "fe80::1").stdout == f"{folder}/fe80::1\n"
    assert authority == ((folder / "ca.key").read_bytes(), (folder / "ca.crt").read_bytes())
    made = sorted(os.listdir(folder))
    assert made == ["127.0.0.1", "ca.crt", "ca.key", "fe80::1", "node-2"]
    assert {path.name for path in folder.glob("*/*")} == {"ca.crt", "node.crt", "node.key"}
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
    assert modes == {(True, 0o700), (False, 0o600)}
    names = {"127.0.0.1": "IP:127.0.0.1", "node-2": "DNS:node-2", "fe80::1": "IP:FE80:0:0:0:0:0:0:1"}
    for node, named in names.items():
        line = ["openssl", "x509", "-in", folder / node / "node.crt", "-noout", "-ext", "subjectAltName"]
        said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.replace(" Address", "")
        assert re.findall(r"(?:IP|DNS):\S+?(?=,|\n)", said)[0] == named


def test_certificates_of_the_docs_are_kept_out_of_git_of_the_image_and_of_other_nodes():
    (where,) = re.findall(r"^docker/certs (\S+) ", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)
    assert where.startswith("docker/secrets/")
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/secrets" in read("cluster.yaml")["rsync_exclude"]


def shakes_hands(server, client):
    """Whether two sides agree, a server that asks for a certificate and a client, each with its folder or None."""
    contexts = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    for context, folder in zip(contexts, (server, client or server), strict=True):
        context.load_verify_locations(folder / "ca.crt")
    for context, folder in zip(contexts, (server, client), strict=True):
        if folder:
            context.load_cert_chain(folder / "node.crt", folder / "node.key")
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [contexts[0].wrap_bio(here, there, server_side=True)]
    sides.append(contexts[1].wrap_bio(there, here, server_hostname="127.0.0.1"))
    left = set(sides)
    for side in sides[::-1] * 4:
        try:
            side.do_handshake()
            left.discard(side)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return False
    return not left


def test_certificates_let_in_nodes_of_the_same_cluster_alone(tmp_path):
    assert certs(tmp_path / "ours", "127.0.0.1", "node-2").returncode == 0
    assert certs(tmp_path / "theirs", "127.0.0.1").returncode == 0
    ours = tmp_path / "ours"
    assert shakes_hands(ours / "127.0.0.1", ours / "node-2")
    assert not shakes_hands(ours / "127.0.0.1", None)
    assert not shakes_hands(ours / "127.0.0.1", tmp_path / "theirs" / "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a folder and nodes are needed: "),
        (["new"], "a folder and nodes are needed: "),
        (["new", "10.0.0.1", "../10.0.0.2"], "a node must be an address or a name, got '../10.0.0.2'"),
        (["new", "-x"], "a node must be an address or a name, got '-x'"),
        (["new", ""], "a node must be an address or a name, got ''"),
        (["there", "10.0.0.2", "10.0.0.1"], "there/10.0.0.1 is there already: "),
    ],
)
def test_certificates_are_made_for_all_nodes_or_for_none(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "10.0.0.1").mkdir(parents=True)
    done = certs(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {said}")
    assert os.listdir(tmp_path) == ["there"]
    assert os.listdir(tmp_path / "there") == ["10.0.0.1"]


def test_certificates_need_openssl_and_say_so(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shutil.which("sh"))
    done = certs(tmp_path / "new", "10.0.0.1", path=f"{tmp_path}/bin")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: openssl must be installed")


def test_images_of_the_compose_file_must_be_pinned():
    texts = [SERVICES["head"]["build"]["args"]["BASE"], SERVICES["prometheus"]["image"], SERVICES["grafana"]["image"]]
    assert [re.fullmatch(r"\$\{(\w+):\?.+\}", text)[1] for text in texts] == ["BASE", "PROMETHEUS", "GRAFANA"]
    assert {SERVICES[name]["image"] for name in RAYS} == {"qdtune"}


def test_image_takes_nothing_but_locked_wheels():
    shell = " ".join(rest for name, rest in BUILD if name == "RUN")
    installs = re.findall(r"pip install [^&|;]*", shell)
    assert len(installs) == 1
    assert {"--require-hashes", "--only-binary", ":all:", "--no-cache-dir"} <= set(installs[0].split())
    assert not re.search(r"curl|wget|index-url|find-links|https?:|git\+", (DOCKER / "Dockerfile").read_text())
    assert "ADD" not in {name for name, _ in BUILD}
    copied = [rest.split()[-2] for name, rest in BUILD if name == "COPY"]
    assert copied == ["docker/requirements.txt", "qdtune", "/opt", "sweeps"]


def test_image_is_for_a_gpu_or_for_none():
    assert ("ARG", "DEVICE=cuda") in BUILD
    choice = next(rest for name, rest in BUILD if name == "RUN" and "${DEVICE}" in rest)
    assert re.findall(r"(\S+)\) ", choice)[:2] == ["cuda", "cpu"]
    assert "exit 1" in choice


def test_image_runs_as_nobody_in_particular():
    assert [rest for name, rest in BUILD if name == "USER"] == ["10001"]
    names = [name for name, _ in FINAL]
    assert "RUN" not in names[names.index("USER") :], "what comes later could be changed by that user"
    settings = dict(pair.split("=", 1) for name, rest in FINAL if name == "ENV" for pair in rest.split())
    assert settings["HOME"] == "/home/qdtune"
    assert settings["QDTUNE_RUNS"] == "/runs", "where a submitted sweep writes"
    shell = " ".join(rest for name, rest in FINAL if name == "RUN")
    assert "useradd --uid 10001" in shell
    assert "-perm /6000 -exec chmod a-s" in shell
    owned = re.search(r"install -d -o 10001 -g 10001 ([^&]*)", shell)
    assert owned
    assert owned[1].split() == ["/runs", "/data", "/boards", "/home/qdtune/.cache"], "all else is root's"
    assert "--chown" not in (DOCKER / "Dockerfile").read_text()
    assert "chmod -R a-w" in " ".join(rest for name, rest in BUILD if name == "RUN")


def test_image_has_a_compiler_and_gets_signals():
    assert any({"g++", "openssl", "python3-dev"} <= set(rest.split()) for name, rest in FINAL if name == "RUN")
    (entry,) = [rest for name, rest in FINAL if name == "ENTRYPOINT"]
    assert json.loads(entry) == ["python", "-m", "qdtune"], "no shell that keeps SIGTERM to itself"


def test_builder_is_sent_nothing_private():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "everything, but for what is named"
    named = {line[1:] for line in lines if line.startswith("!")}
    assert named == {"qdtune", "sweeps", "docker/requirements.txt"}
    assert {".git", ".venv", "runs", "data", "**/*.token"} <= set(lines)


@services
def test_service_is_confined(service):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "user", "userns_mode"} & set(
        service
    )
    assert not any("docker.sock" in volume for volume in service["volumes"])
    assert {"pids_limit", "mem_limit", "cpus"} <= set(service)
    mounted = [line.split(":")[0] for line in service["tmpfs"]]
    assert "/tmp" in mounted
    assert all("size=" in line for line in service["tmpfs"])


@services
def test_service_ends_in_order_and_says_how_it_is(service):
    assert service["init"] is True
    assert service["stop_grace_period"] == "30s"
    assert service["restart"] == "on-failure:3"
    assert service["healthcheck"]["test"][0] == "CMD"


def test_health_is_asked_where_it_is_told():
    for name, where in [("head", ":8265/api/gcs_healthz"), ("worker", ":52365/api/local_raylet_healthz")]:
        assert f"127.0.0.1{where}" in SERVICES[name]["healthcheck"]["test"][-1]
    for name in ("worker", "prometheus"):
        assert SERVICES[name]["depends_on"]["head"] == {"condition": "service_healthy"}


def test_ports_are_published_on_loopback_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"head": ["127.0.0.1:8265:8265"], "grafana": ["127.0.0.1:3000:3000"]}
    assert not any("expose" in service for service in SERVICES.values())
    zeros = [word for s in SERVICES.values() for word in s.get("command", []) if "0.0.0.0" in word]
    assert zeros == ["--dashboard-host=0.0.0.0"], "inside its container, of whose ports one is published"


def test_networks_let_nothing_out():
    assert COMPOSE["networks"]["inner"] == {"internal": True}
    masquerade = COMPOSE["networks"]["door"]["driver_opts"]
    assert masquerade == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert {name for name, service in SERVICES.items() if "door" in service["networks"]} == {"head", "grafana"}
    assert all("inner" in service["networks"] for service in SERVICES.values())
    assert SERVICES["head"]["networks"]["inner"] == {"aliases": ["ray-head"]}
    assert option(SERVICES["head"], "node-ip-address") == "ray-head", "its address on the network of the workers"
    assert option(SERVICES["worker"], "address") == f"ray-head:{option(SERVICES['head'], 'port')}"


def test_token_is_a_secret_from_a_file():
    assert COMPOSE["secrets"] == {"ray_token": {"file": "./secrets/ray.token"}}
    for name in RAYS:
        assert SERVICES[name]["secrets"] == ["ray_token"]
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            secret = re.search(r"TOKEN|PASSWORD|SECRET|KEY", name)
            assert not secret or value in ("/run/secrets/ray_token",), name
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text()


def test_object_store_has_room_in_shared_memory():
    for name in RAYS:
        store = int(option(SERVICES[name], "object-store-memory"))
        assert store < size(SERVICES[name]["shm_size"])


def test_volumes_are_writable_where_they_must_be_and_nowhere_else():
    for name in RAYS:
        volumes = SERVICES[name]["volumes"]
        assert volumes[:3] == ["runs:/runs", "cache:/home/qdtune/.cache", "boards:/boards"]
        assert volumes[3].endswith(":/data:ro")
        assert len(volumes) == 4
    theirs = [v for name in ("prometheus", "grafana") for v in SERVICES[name]["volumes"]]
    assert [v for v in theirs if not v.endswith(":ro")] == ["prometheus:/prometheus"]
    for volume in theirs:
        if volume.startswith("./"):
            assert (DOCKER / volume.split(":")[0]).is_file(), volume


def test_prometheus_finds_rays_nodes():
    (job,) = read("prometheus.yml")["scrape_configs"]
    (found,) = job["http_sd_configs"]
    assert found["url"] == "http://ray-head:8265/api/prometheus/sd"
    assert found["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/ray_token"}
    assert SERVICES["prometheus"]["secrets"] == ["ray_token"]


def test_prometheus_of_your_own_finds_rays_nodes_as_the_docs_say(tmp_path):
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    page = (ROOT / "docs" / "docker-and-metrics.md").read_text()
    (snippet,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", page, re.DOTALL)
    ((job,),) = YAML(typ="safe").load(snippet).values()
    # The file is a link into a folder that may not be there yet: Prometheus does not see it change, and looks again
    # after five minutes by itself. A rate over one minute needs several samples of that minute.
    (found,) = job["file_sd_configs"]
    assert found == {"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"], "refresh_interval": "10s"}
    (source,) = read("grafana/datasource.yaml")["datasources"]
    assert job["scrape_interval"] == source["jsonData"]["timeInterval"] == "10s"
    assert read("prometheus.yml")["global"]["scrape_interval"] == "10s"
    (tmp_path / "prometheus.yml").write_text(snippet)
    if promtool := shutil.which("promtool"):
        line = [promtool, "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]
        assert subprocess.run(line, capture_output=True, check=False).returncode == 0


def test_dashboard_finds_prometheus_and_grafana():
    environment = SERVICES["head"]["environment"]
    assert environment["RAY_PROMETHEUS_HOST"] == "http://prometheus:9090"
    assert environment["RAY_GRAFANA_HOST"] == "http://grafana:3000"
    assert environment["RAY_GRAFANA_IFRAME_HOST"] == "http://127.0.0.1:3000", "the browser's way to it"
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ALLOW_EMBEDDING"] == "true"
    (source,) = read("grafana/datasource.yaml")["datasources"]
    assert (source["name"], source["url"]) == ("Prometheus", environment["RAY_PROMETHEUS_HOST"])
    folders = {provider["options"]["path"] for provider in read("grafana/boards.yaml")["providers"]}
    mounted = {volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    assert environment["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"] in folders & mounted
    assert folders == {"/boards", "/etc/grafana/boards"}
    assert "/etc/grafana/boards/qdtune.json" in mounted


def test_grafana_is_for_looking_only():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", (
        "else there is an admin with a known password"
    )
    board = json.loads((DOCKER / "grafana" / "qdtune.json").read_text())
    (source,) = read("grafana/datasource.yaml")["datasources"]
    asked = {panel["datasource"]["uid"] for panel in board["panels"]}
    assert asked == {source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert board["editable"] is False


def test_gpus_are_given_to_the_worker():
    (service,) = read("gpu.yaml")["services"].items()
    assert service[0] == "worker"
    (device,) = service[1]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_cluster_file_is_what_rays_launcher_wants(monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = prepare_config(read("cluster.yaml"))
    validate_config(config)
    assert config["provider"]["type"] == "local"
    starts = [
        line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line and "dashboard-host" not in line for line in starts)
    assert any("--require-hashes" in line for line in config["setup_commands"])


def commands():
    """The `docker` and `ray` lines of the docs, in words."""
    text = (ROOT / "docs" / "docker-and-metrics.md").read_text().split("## With Docker")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text.replace("\\\n", ""), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def test_commands_of_the_docs_name_what_exists():
    lines = [words for words in commands() if words]
    assert len(lines) >= 6
    files = [word for words in lines for word in words if re.fullmatch(r"(docker|sweeps)/\S*\.\w+", word)]
    assert {"docker/compose.yaml", "docker/cluster.yaml"} <= set(files)
    made = {"docker/secrets/ray.token"}
    assert [name for name in files if name not in made and not (ROOT / name).exists()] == []
    for words in lines:
        for service in [words[words.index("exec") + 1]] if "exec" in words else []:
            assert service in SERVICES
