"""The web server of the page: this machine only, no files, no state between requests.

A page of another site that the browser has open must not use it: requests need a Host of this
machine (a name that a stranger's DNS server points at 127.0.0.1 is another Host) and, where the
browser says which page they come from, an Origin that is this page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import threading
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from quantsr.demo.networks import Networks
from quantsr.errors import InputError, WorkError, one_line

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
MAX_BYTES = 64 << 20
"""Largest file that is taken."""

_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_TIMEOUT = 30  # seconds a browser may take between two parts of a request
_WAITING = 4  # pictures in memory at once


class DemoServer(ThreadingHTTPServer):
    """Answers `/` with the page, `/networks` with its menus and `POST /enlarge` with a PNG."""

    daemon_threads = True
    block_on_close = False  # a stopped demo does not wait for browsers

    def __init__(self, networks: Networks, port: int = 0) -> None:
        """
        Args:
            port: 0 takes a free one, see `address`.

        Raises:
            InputError: the port is taken or not allowed.
        """
        self.networks = networks
        self.places = threading.BoundedSemaphore(_WAITING)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}: {error.strerror}; leave it out to take a free one") from error

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers close connections as they like."""
        log.debug("a request of %s failed", client_address, exc_info=True)


class _RequestError(Exception):
    """A request that is not answered; `status` and a text for the page."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    server_version = "quantsr"
    sys_version = ""
    timeout = _TIMEOUT

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, answer: Any) -> None:
        try:
            self._check_sender()
            answer()
        except _RequestError as error:
            self._error(error.status, str(error))
        except InputError as error:
            self._error(HTTPStatus.UNPROCESSABLE_ENTITY, one_line(str(error)))
        except MemoryError:
            self._error(HTTPStatus.INSUFFICIENT_STORAGE, "needs more memory than there is; cut the picture")
        except WorkError as error:
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, one_line(str(error)))
        except (ConnectionError, TimeoutError):  # the browser is gone
            raise
        except Exception:
            log.exception("a request failed")
            text = "something unexpected went wrong; the terminal of 'quantsr demo' shows what"
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, text)

    def _check_sender(self) -> None:
        host = self.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            raise _RequestError(HTTPStatus.FORBIDDEN, "this page is for the machine that it runs on")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise _RequestError(HTTPStatus.FORBIDDEN, "another page may not use this one")

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._send("text/html; charset=utf-8", page(), {"Content-Security-Policy": policy()})
        elif path == "/networks":
            self._send("application/json", json.dumps(self.server.networks.listing()).encode())
        else:
            raise _RequestError(HTTPStatus.NOT_FOUND, f"there is no {path}")

    def _post(self) -> None:
        path, _, words = self.path.partition("?")
        if path != "/enlarge":
            raise _RequestError(HTTPStatus.NOT_FOUND, f"there is no {path}")
        query = parse_qs(words)
        name, depth = query.get("network", [""])[0], query.get("depth", [""])[0]
        if depth and not re.fullmatch(r"[0-9]{1,4}", depth):
            raise _RequestError(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"depth: must be a number, got {depth[:20]!r}"
            )
        if not self.server.places.acquire(blocking=False):
            raise _RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "several pictures are being enlarged; try again"
            )
        try:
            result = self.server.networks.enlarge(self._body(), name, int(depth) if depth else None)
        finally:
            self.server.places.release()
        about = {
            "milliseconds": round(result.milliseconds, 1),
            "engine": result.engine,
            "size": result.size,
            "notes": result.notes,
        }
        self._send("image/png", result.png, {"X-Quantsr": json.dumps(about)})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,12}", length):
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "the length of the file is missing")
        if int(length) > MAX_BYTES:
            raise _RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has more than {MAX_BYTES >> 20} MiB; 'quantsr upscale' takes it",
            )
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise _RequestError(HTTPStatus.BAD_REQUEST, "the file ended early")
        return body

    def _send(
        self,
        kind: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: HTTPStatus, text: str) -> None:
        # What is left of the request's body is not read.
        self.close_connection = True
        self._send("application/json", json.dumps({"error": text}).encode(), {"Connection": "close"}, status)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


@cache
def page() -> bytes:
    """The page: one file with its script and its style."""
    return resources.files("quantsr.demo").joinpath("page.html").read_bytes()


@cache
def policy() -> str:
    """Content-Security-Policy: the page's own script and style, its own server, nothing else."""
    hashes = {
        tag: base64.b64encode(
            hashlib.sha256(page().split(f"<{tag}>".encode())[1].split(f"</{tag}>".encode())[0]).digest()
        ).decode()
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
