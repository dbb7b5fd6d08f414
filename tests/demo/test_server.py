"""The server of `quantsr demo`: its answers, and who may ask."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantsr import cli
from quantsr.demo import server as module
from quantsr.demo.networks import Networks
from quantsr.demo.server import DemoServer
from quantsr.errors import InputError
from tests.demo.conftest import Answer, error_of

Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_page_names_every_network_and_loads_nothing_from_elsewhere(ask: Ask) -> None:
    status, headers, body = ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.findall(rb"(?:https?:)?//[\w.]+\.\w+|@import|url\(", body)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    status, _, body = ask("GET", "/networks")
    assert status == 200
    assert json.loads(body) == [
        {"name": "four", "scale": 4, "depths": [3, 1]},
        {"name": "two", "scale": 2, "depths": [2]},
    ]


def test_a_picture_comes_back_as_png_with_its_time(ask: Ask, networks: Networks, picture: bytes) -> None:
    for depth in ("1", ""):
        status, headers, body = ask("POST", f"/enlarge?network=four&depth={depth}", picture)
        assert (status, headers["content-type"]) == (200, "image/png")
        assert body == networks.enlarge(picture, "four", int(depth) if depth else None).png
        about = json.loads(headers["x-quantsr"])
        assert about["size"] == [9, 8]
        assert about["milliseconds"] >= 0
        assert (about["engine"] == "bicubic") == (not depth)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1.example", "", "[::1"])
def test_a_name_that_was_pointed_at_this_machine_is_refused(host: str, ask: Ask, picture: bytes) -> None:
    for method, path in (("GET", "/"), ("GET", "/networks"), ("POST", "/enlarge?network=two&depth=2")):
        body = picture if method == "POST" else None
        assert error_of(ask(method, path, body, Host=host))[0] == 403


def test_a_page_of_another_site_is_refused(ask: Ask, server: DemoServer, picture: bytes) -> None:
    path = "/enlarge?network=two&depth=2"
    own = f"127.0.0.1:{server.server_port}"
    for origin in ("https://attacker.example", "null", f"https://{own}", "http://127.0.0.1:1"):
        assert error_of(ask("POST", path, picture, Origin=origin))[0] == 403
    assert ask("POST", path, picture, Origin=f"http://{own}")[0] == 200
    forwarded = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}  # by `ssh -L`
    assert ask("POST", path, picture, **forwarded)[0] == 200


def test_it_listens_on_this_machine_only(server: DemoServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/secret", None, 404, "there is no /secret"),
        ("GET", "/../networks.py", None, 404, "there is no /../networks.py"),
        ("POST", "/", b"x", 404, "there is no /"),
        ("POST", "/enlarge?network=two&depth=2", b"x", 422, "the picture: is not a picture"),
        ("POST", "/enlarge?network=x&depth=2", b"x", 422, "network: 'x' is not offered"),
        ("POST", "/enlarge?network=two&depth=-1", b"x", 422, "depth: must be a number, got '-1'"),
        ("POST", "/enlarge?depth=2", b"x", 422, "network: '' is not offered"),
    ],
)
def test_bad_requests_get_one_line(
    method: str, path: str, body: bytes | None, status: int, message: str, ask: Ask
) -> None:
    found, text = error_of(ask(method, path, body))
    assert found == status
    assert text.startswith(message)
    assert "\n" not in text


def test_a_file_too_large_is_refused_unread(ask: Ask, server: DemoServer) -> None:
    head = f"POST /enlarge?network=two&depth=2 HTTP/1.1\r\nHost: {server.address[7:-1]}\r\n"
    for length, status in ((str(module.MAX_BYTES + 1), b"413"), ("many", b"411"), (None, b"411")):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
            line = "" if length is None else f"Content-Length: {length}\r\n"
            connection.sendall((head + line + "\r\n").encode())
            assert connection.makefile("rb").readline().split()[1] == status


def test_a_file_that_ends_early_is_refused(server: DemoServer) -> None:
    head = f"POST /enlarge?network=two&depth=2 HTTP/1.1\r\nHost: {server.address[7:-1]}\r\nContent-Length: 9\r\n\r\nab"
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(head.encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").readline().split()[1] == b"400"


def test_pictures_in_memory_are_bounded(ask: Ask, server: DemoServer, picture: bytes) -> None:
    path = "/enlarge?network=two&depth=2"
    for _ in range(module._WAITING):
        assert server.places.acquire(blocking=False)
    assert error_of(ask("POST", path, picture))[0] == 503
    server.places.release()
    for body in (b"bad", picture, picture):  # whatever comes of it, the place is free again
        ask("POST", path, body)
    assert ask("POST", path, picture)[0] == 200


def test_an_unexpected_failure_is_logged_and_said(
    ask: Ask, networks: Networks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(networks, "enlarge", fail)
    status, text = error_of(ask("POST", "/enlarge?network=two&depth=2", b"x"))
    assert (status, "nobody" in text) == (500, False)
    assert "nobody expects this" in caplog.text


def test_a_port_that_is_taken_is_bad_input(server: DemoServer, networks: Networks) -> None:
    with pytest.raises(InputError, match=rf"--port {server.server_port}: .* leave it out"):
        DemoServer(networks, server.server_port)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "must be 0 to 65535"),
        (["--port", "x"], "must be 0 to 65535"),
        (["--network", "nonsense", "--no-browser"], "model nonsense: no such file or name"),
    ],
)
def test_bad_arguments_end_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(["demo", *words])
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2
    assert message in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted_and_loads_no_torch(network_files: list[Path]) -> None:
    code = (
        "import sys\nfrom quantsr.cli import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(code or 100 * ('torch' in sys.modules))"
    )
    words = [sys.executable, "-c", code, "demo", "--no-browser", "--network", str(network_files[1])]

    def ignore() -> None:
        """As for processes that a shell starts in the background."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=ignore) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows the page", line)
        assert found is not None, line
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert connection.makefile("rb").readline().split()[1] == b"200"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
