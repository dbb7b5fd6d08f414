"""A small network, a server that runs it, and requests to that server."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantsr.demo.networks import Networks
from quantsr.demo.server import DemoServer
from quantsr.deploy.packed import packing
from quantsr.deploy.stand_ins.convolutional import random_model


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """x4 with depths 3 and 1, and x2 with depth 2."""
    folder = tmp_path_factory.mktemp("networks")
    models = {
        "four": random_model(num_feat=16, num_block=3, depths=(3, 1)),
        "two": random_model(num_feat=16, num_block=2, scale=2, depths=(2,)),
    }
    for name, model in models.items():
        packing.save(model, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in models]


@pytest.fixture(scope="session")
def networks(network_files: list[Path]) -> Networks:
    return Networks(network_files, threads=1)


@pytest.fixture
def server(networks: Networks) -> Iterator[DemoServer]:
    with DemoServer(networks) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def ask(server: DemoServer) -> Callable[..., Answer]:
    """ask(METHOD, PATH, body=None, **headers): status, headers (lower case) and body."""

    def request(method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    return request


def error_of(answer: Answer) -> tuple[int, str]:
    """Status and message of an answer that is an error."""
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    content: dict[str, Any] = json.loads(body)
    assert list(content) == ["error"]
    return status, content["error"]
