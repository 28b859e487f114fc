"""A server that imitates EDGAR, its limits and its failures, and writes down every request it sees."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RATE_PAGE = b"""<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/x.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>SEC.gov | Request Rate Threshold Exceeded</title></head>
<body><h1>You have exceeded the traffic limit</h1></body></html>"""


def filing(number: int, size: int = 2000) -> bytes:
    """A small whole submission, another one for each number."""
    body = f"filing {number} says {number * 7}. " * (size // 24)
    return (
        f"<SEC-DOCUMENT>{number}.txt : 20240102\n<SEC-HEADER>\nACCESSION NUMBER:\t\t0000000001-24-{number:06}\n"
        f"CONFORMED SUBMISSION TYPE:\t8-K\n</SEC-HEADER>\n<DOCUMENT>\n<TYPE>8-K\n<TEXT>\n{body}\n</TEXT>\n"
        f"</DOCUMENT>\n</SEC-DOCUMENT>\n"
    ).encode()


@dataclass
class Edgar:
    """What the server has, does wrong, and has seen."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By path: what goes wrong at the first, second, ... request; then all is well."""
    elsewhere: str = "http://127.0.0.1:9"
    seen: list[tuple[float, str, str]] = field(default_factory=list)
    """(seconds, path, User-Agent) of every request."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def busiest_second(self) -> int:
        """The most requests that fell into any one second."""
        times = sorted(when for when, _, _ in self.seen)
        return max((sum(1 for t in times[i:] if t < begin + 1.0) for i, begin in enumerate(times)), default=0)

    def counts(self) -> Counter[str]:
        return Counter(path for _, path, _ in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    edgar: Edgar

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        edgar = self.edgar
        edgar.seen.append((time.monotonic(), self.path, self.headers.get("User-Agent", "")))
        faults = edgar.faults.get(self.path, [])
        fault = faults.pop(0) if faults else "none"
        data = edgar.files.get(self.path)
        if data is None and fault == "none":
            fault = "missing"
        try:
            _ANSWERS[fault](self, data or b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def reset(self) -> None:
        """Half a status line, then a reset."""
        self.wfile.write(b"HTTP/1.1 20")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.connection.close()

    def drip(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for at in range(len(data)):
            self.wfile.write(data[at : at + 1])
            time.sleep(0.02)

    def unstated(self, data: bytes) -> None:
        """Half the body, its end being the connection's."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def stall(self) -> None:
        """A head that does not come."""
        time.sleep(3)
        self.close_connection = True


_ANSWERS: dict[str, Callable[[_Handler, bytes], None]] = {
    "none": lambda self, data: self.answer(200, data),
    "missing": lambda self, data: self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>"),
    "denied": lambda self, data: self.answer(403, b"<Error><Code>AccessDenied</Code></Error>"),
    "403": lambda self, data: self.answer(403, RATE_PAGE),
    "429": lambda self, data: self.answer(429, b"slow down", Retry_After="1"),
    "503": lambda self, data: self.answer(503, b"later"),
    "500": lambda self, data: self.answer(500, b"oops"),
    "rate page": lambda self, data: self.answer(200, RATE_PAGE, Content_Type="text/html"),
    "cut": lambda self, data: self.answer(200, data[: len(data) // 2], length=len(data)),
    "cut, length right": lambda self, data: self.answer(200, data[: len(data) // 2]),
    "unstated": lambda self, data: self.unstated(data),
    "empty": lambda self, data: self.answer(200, b""),
    "drip": lambda self, data: self.drip(data),
    "stall": lambda self, data: self.stall(),
    "reset": lambda self, data: self.reset(),
    "gzip": lambda self, data: self.answer(200, gzip.compress(data), Content_Encoding="gzip"),
    "false gzip": lambda self, data: self.answer(200, data, Content_Encoding="gzip"),
    "cut gzip": lambda self, data: self.answer(200, gzip.compress(data)[:-9], Content_Encoding="gzip"),
    "brotli": lambda self, data: self.answer(200, data, Content_Encoding="br"),
    "html": lambda self, data: self.answer(200, b"<!DOCTYPE html><html><body>maintenance</body></html>"),
    "moved": lambda self, data: self.answer(302, b"", Location=self.path),
    "off host": lambda self, data: self.answer(302, b"", Location=f"{self.edgar.elsewhere}{self.path}"),
    "file": lambda self, data: self.answer(302, b"", Location="file:///etc/passwd"),
    "other scheme": lambda self, data: self.answer(301, b"", Location=f"https://127.0.0.1:{self.edgar.port}/x"),
}


PASSING = [
    *("403", "429", "503", "500", "rate page", "cut", "cut, length right", "unstated", "empty", "drip", "stall"),
    *("reset", "gzip", "false gzip", "cut gzip", "brotli", "html", "moved"),
]
"""Faults after which the next request is answered well."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the play."""


@contextmanager
def serving(edgar: Edgar | None = None) -> Iterator[Edgar]:
    """An EDGAR on a port of its own, in threads of this process."""
    edgar = edgar or Edgar()
    handler = type("Handler", (_Handler,), {"edgar": edgar})
    server = _Server(("127.0.0.1", 0), handler)
    edgar.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield edgar
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
