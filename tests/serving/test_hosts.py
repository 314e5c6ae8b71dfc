"""A page of another name that points at this computer gets nothing."""

import pytest
from served_tokenizer import NAME

pytest.importorskip("fastapi")

from elastic_attention.serving.server.hosts import _read_name, list_allowed_hosts

BODY = {"model": NAME, "prompt": "The boat is red.", "max_tokens": 1}


def test_names_of_a_server():
    own = {"localhost", "127.0.0.1", "::1"}
    assert list_allowed_hosts("127.0.0.1", []) == list_allowed_hosts("localhost", []) == own
    assert list_allowed_hosts("127.0.0.2", ["Box.lan"]) == own | {"127.0.0.2", "box.lan"}
    assert list_allowed_hosts("0.0.0.0", []) is None
    assert list_allowed_hosts("0.0.0.0", ["box.lan"]) == own | {"0.0.0.0", "box.lan"}
    assert list_allowed_hosts("127.0.0.1", ["*"]) is None
    assert list_allowed_hosts("127.0.0.1", ["box.lan:8000", "[fe80::1]", "fe80::2"]) == own | {
        "box.lan",
        "fe80::1",
        "fe80::2",
    }


@pytest.fixture
def ask(app_engine):
    from starlette.testclient import TestClient

    from elastic_attention.serving.server.app import build_app
    from elastic_attention.serving.server.metrics import ServerMetrics

    allowed = list_allowed_hosts("127.0.0.1", ["box.lan"])
    with TestClient(build_app(app_engine, name=NAME, metrics=ServerMetrics(), allowed_hosts=allowed)) as client:

        def post(host):
            return client.post("/v1/completions", json=BODY, headers={"host": host})

        yield post


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LocalHost:80", "box.lan"])
def test_own_names_are_answered(ask, host):
    assert ask(host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_other_names_are_refused(ask, host):
    refused = ask(host)
    assert refused.status_code == 403
    assert f"--allowed-host {host.partition(':')[0]}" in refused.json()["error"]["message"]
    assert ask("localhost").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:", "evil`s.example", "evil.example@localhost", "localhost@evil.example", ""]
)
def test_malformed_names_are_not_taken_for_the_servers_own(ask, host):
    assert ask(host).status_code == 403


def test_without_a_name_it_is_the_servers_address():
    def read(*headers, server=("127.0.0.1", 8000)):
        return _read_name({"type": "http", "headers": [(b"host", value) for value in headers], "server": server})

    assert read() == "127.0.0.1" and read(server=None) is None
    assert read(b"localhost", b"evil.example") is None and read(b"[::1]:80") == "::1" and read(b"Box.lan") == "box.lan"


def test_the_guard_of_another_server(monkeypatch):
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from elastic_attention.serving.server.guard import VARIABLE, Guard, prepare_guard

    async def echo(request):
        return PlainTextResponse(str(len(await request.body())))

    def post(size, host="localhost"):
        app = Starlette(routes=[Route("/", echo, methods=["POST"])])
        app.add_middleware(Guard)
        return TestClient(app).post("/", content=b"a" * size, headers={"host": host})

    monkeypatch.setenv(VARIABLE, "")
    assert prepare_guard("127.0.0.1", [], 100) == f"{Guard.__module__}.Guard"
    assert post(100).text == "100" and post(101).status_code == 413 and post(1, "evil.example").status_code == 403
    prepare_guard("0.0.0.0", [], None)
    assert post(101, "evil.example").text == "101" and post((8 << 20) + 1).status_code == 413
