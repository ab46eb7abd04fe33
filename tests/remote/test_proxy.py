"""The proxy of the environment would read the cluster's token: none for this machine, else only if allowed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ray._raylet import AuthenticationTokenLoader

from qdtune import __main__
from qdtune.remote.proxy import find_proxy
from qdtune.sweep import cluster

TOKEN = "CANARY-0123456789abcdef"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Listener(HTTPServer):
    """Keeps each request that it is sent, head and all, and answers 404."""

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.heard: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.heard.append(f"{self.requestline}\n{self.headers}")  # type: ignore[attr-defined]
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Listener, Listener]]:
    """A proxy, which the environment names, and a server."""
    both = (Listener(), Listener())
    for each in both:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    for name in (*VARIABLES, *map(str.upper, VARIABLES), "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # to be set back, for a command sets some itself
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{both[0].server_port}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    kept = AuthenticationTokenLoader.instance()
    kept.reset_cache()  # Ray keeps the first token of a process, which another test may have set
    yield both
    kept.reset_cache()
    for each in both:
        each.shutdown()
        each.server_close()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = __main__.main(["jobs", *argv])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9"])
def test_token_for_this_machine_goes_to_no_proxy(
    listeners: tuple[Listener, Listener], capsys: pytest.CaptureFixture[str], host: str
) -> None:
    proxy, server = listeners
    code, said = run(capsys, "--address", f"http://{host}:{server.server_port}")
    assert (code, said.count("\n"), proxy.heard) == (2, 1, [])
    assert any(TOKEN in request for request in server.heard), "the test would not see a token"


def test_proxy_of_another_machine_is_named_and_must_be_allowed(
    listeners: tuple[Listener, Listener], capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, _ = listeners
    address = "http://head.invalid:8265"
    code, said = run(capsys, "--address", address)
    way = f"requests to {address} go through the proxy http://127.0.0.1:{proxy.server_port}, which may read the token"
    assert (code, said) == (2, f"error: {way} (put head.invalid into no_proxy, or allow it with --allow-proxy)\n")
    assert proxy.heard == []
    assert run(capsys, "--address", address, "--allow-proxy")[0] == 2
    assert any(TOKEN in request for request in proxy.heard)


def test_proxy_is_the_one_that_requests_go_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *map(str.upper, VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    assert find_proxy("http://head:8265") is None
    monkeypatch.setenv("ALL_PROXY", "proxy:3128")
    assert find_proxy("http://head:8265") == "http://proxy:3128"
    for here in (
        "http://127.0.0.1:1",
        "http://127.9.9.9:1",
        "http://[::1]:1",
        "http://localhost:1",
        "http://LocalHost.:1",
    ):
        assert find_proxy(here) is None
    monkeypatch.setenv("https_proxy", "http://me:secret@secure:3128/x")
    assert find_proxy("https://head:8265") == "http://secure:3128"
    monkeypatch.setenv("no_proxy", "head")
    assert find_proxy("https://head:8265") is None
    assert find_proxy("https://127.0.0.1.example.com:8265") == "http://secure:3128"


def test_every_child_of_a_launch_spares_this_machine_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "head, 127.0.0.1")
    monkeypatch.setenv("no_proxy", "*")
    cluster.set_environment("10.0.0.1:6379")
    assert os.environ["NO_PROXY"] == "head,127.0.0.1,localhost,127.0.0.0/8,::1"
    assert os.environ["no_proxy"] == "*"
