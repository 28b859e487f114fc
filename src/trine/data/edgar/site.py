"""One host, asked politely: the only module of trine that sends anything.

Every request takes its turn of the shared pace and carries the caller's User-Agent. Redirects are followed by hand
and only within the host. A body counts once it is whole: by Content-Length, by its encoding's own end, and by the
marks at a submission's end; pages that the SEC sends in place of a file are told apart from files.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO
from urllib.parse import quote

import httpx

from trine.data.edgar.pace import LONGEST_HOLD_SECONDS, Pace
from trine.data.edgar.submission import cut_short
from trine.data.edgar.unpack import GZIP, MOST_BYTES
from trine.errors import BadInput, TrineError

SEC = "https://www.sec.gov"
MOST_PER_SECOND = 10.0
_BLOCK_PAGE = re.compile(
    rb"Request Rate Threshold Exceeded|Undeclared Automated Tool|exceeded the SEC.{1,5}s maximum allowable request",
    re.IGNORECASE | re.DOTALL,
)
_HTML = re.compile(rb"\s*(?:<\?xml[^>]{0,200}>\s*)?<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)
_MISSING = re.compile(rb"<Code>(?:AccessDenied|NoSuchKey)</Code>")
_END_MARKS = (b"</html>", b"</HTML>", b"</SEC-DOCUMENT>", b"</SUBMISSION>", b"</DOCUMENT>", b"-----END PRIVACY")
_REDIRECTS, _ENDS = {301, 302, 303, 307, 308}, 4096


@dataclass(frozen=True)
class Policy:
    """How a host is asked. Times in seconds."""

    user_agent: str
    base_url: str = SEC
    per_second: float = MOST_PER_SECOND
    attempts: int = 10
    first_wait: float = 1.0
    longest_wait: float = 600.0
    connect: float = 15.0
    silence: float = 30.0
    """Longest wait for the next bytes."""
    grace: float = 60.0
    slowest: float = 8192.0
    """A body may take `grace` and a second more for every `slowest` bytes."""

    def __post_init__(self) -> None:
        if not self.user_agent.strip():
            raise BadInput(
                "--user-agent is empty; the SEC asks for a name and an address, such as 'Example Ltd data@example.com'"
            )
        if not self.user_agent.isascii() or not self.user_agent.isprintable():
            raise BadInput(f"--user-agent {self.user_agent!r}: expected printable ASCII in one line")
        if not 0 < self.per_second <= MOST_PER_SECOND:
            raise BadInput(f"--rate {self.per_second:g}: expected more than 0 and at most {MOST_PER_SECOND:g} a second")
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise BadInput(f"--base-url {self.base_url}: {error}") from None
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise BadInput(f"--base-url {self.base_url}: expected http(s)://HOST, such as {SEC}")


class Missing(TrineError):
    """The host will not give this file however often it is asked."""


class _Again(Exception):
    """This attempt failed; a later one may not. `limited`: the host asks for less, so every process waits."""

    def __init__(self, why: str, wait: float | None = None, limited: bool = False) -> None:
        super().__init__(why)
        self.wait, self.limited = wait, limited


@dataclass(frozen=True)
class Body:
    """What one file's bytes are."""

    sha256: str
    bytes: int
    head: bytes
    tail: bytes


class Site:
    """A host and the connections to it. Use as an async context."""

    def __init__(self, policy: Policy, pace: Pace) -> None:
        self.policy, self.pace, self.requests = policy, pace, 0
        self._base = httpx.URL(policy.base_url.rstrip("/") + "/")
        self._client = httpx.AsyncClient(
            headers={"User-Agent": policy.user_agent, "Accept-Encoding": "gzip, deflate"},
            timeout=httpx.Timeout(policy.silence, connect=policy.connect, pool=None),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, file: IO[bytes]) -> Body:
        """Write the file at `path` below the base to `file`, whole and checked. Raises Missing and TrineError."""
        why = ""
        for attempt in range(self.policy.attempts):
            try:
                file.seek(0)
                file.truncate()
                return await self._attempt(path, file)
            except _Again as error:
                why, wait = str(error), error.wait
                if wait is not None and wait > LONGEST_HOLD_SECONDS:
                    raise TrineError(f"{path}: {why}, and asks to wait {wait:,.0f} seconds") from None
                if wait is None:
                    wait = min(self.policy.longest_wait, self.policy.first_wait * 2**attempt)
                    wait *= random.uniform(1.0, 1.25)
                if error.limited:
                    self.pace.hold(wait)
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
                wait = min(self.policy.longest_wait, self.policy.first_wait * 2**attempt)
            if attempt + 1 < self.policy.attempts:
                await asyncio.sleep(wait)
        raise TrineError(f"{path}: {why}; given up after {self.policy.attempts} attempts")

    async def _attempt(self, path: str, file: IO[bytes]) -> Body:
        url = self._base.join(quote(path.lstrip("/"), safe="/%~:@+,;="))
        for _ in range(6):
            self._own(url, path)
            async with self.pace.turn():
                self.requests += 1
                answer = await self._send(url)
            try:
                if answer.status_code not in _REDIRECTS:
                    await _refusals(answer, path)
                    return await self._receive(answer, path, file)
                url = url.join(answer.headers.get("Location", ""))
            except httpx.InvalidURL as error:
                raise Missing(f"{path}: redirects to no address ({error})") from None
            finally:
                await answer.aclose()
        raise Missing(f"{path}: redirects without end")

    async def _send(self, url: httpx.URL) -> httpx.Response:
        """The answer's head, which may take `grace` seconds however slowly it drips."""
        try:
            async with asyncio.timeout(self.policy.grace):
                return await self._client.send(self._client.build_request("GET", url), stream=True)
        except TimeoutError:
            raise _Again(f"no answer within {self.policy.grace:g} seconds") from None

    def _own(self, url: httpx.URL, path: str) -> None:
        """Raise Missing unless `url` is on the base's host."""
        own = (self._base.scheme, self._base.host, self._base.port)
        if (url.scheme, url.host, url.port) != own or url.userinfo:
            raise Missing(f"{path}: redirects to {url.scheme}://{url.host}, outside {self._base.host}; not followed")

    async def _receive(self, answer: httpx.Response, path: str, file: IO[bytes]) -> Body:
        """The body of a 200 answer, written to `file` and checked."""
        digest, size, tail, began = hashlib.sha256(), 0, b"", time.monotonic()
        head = b""
        async for piece in _decoded(answer):
            size += len(piece)
            if size > MOST_BYTES:
                raise Missing(f"{path}: has more than {MOST_BYTES:,} bytes")
            if time.monotonic() - began > self.policy.grace + size / self.policy.slowest:
                raise _Again(f"comes at less than {self.policy.slowest:,.0f} bytes a second")
            digest.update(piece)
            file.write(piece)
            head = head if len(head) >= _ENDS else (head + piece)[:_ENDS]
            tail = (tail + piece)[-_ENDS:]
        body = Body(digest.hexdigest(), size, head, tail)
        _check_whole(answer, path, body)
        return body


async def _refusals(answer: httpx.Response, path: str) -> None:
    """Raise for every answer that is not 200."""
    status, wait = answer.status_code, _retry_after(answer)
    if status == 200:
        return
    text = b""
    if status == 403:
        async for piece in answer.aiter_bytes():
            text += piece
            if len(text) > 1 << 16:
                break
    if status in (404, 410) or _MISSING.search(text):
        raise Missing(f"{path}: the host has no such file ({status})")
    if status in (403, 429):
        raise _Again(f"the host limits requests ({status})", wait, limited=True)
    if status == 503:
        raise _Again("the host is not available (503)", wait, limited=wait is not None)
    if status in (408, 425) or status >= 500 or 200 <= status < 300:
        raise _Again(f"answered {status}", wait)
    raise Missing(f"{path}: answered {status}")


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds that the host asks to wait, from a number or a date."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


async def _decoded(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body out of its Content-Encoding. A stream that ends early or is in another encoding is an _Again."""
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        async for piece in answer.aiter_raw():
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _Again(f"comes in the encoding {encoding!r}, which was not asked for")
    stream = zlib.decompressobj(wbits=47 if encoding != "deflate" else 15)
    try:
        async for piece in answer.aiter_raw():
            while piece and not stream.eof:
                yield stream.decompress(piece, 1 << 20)
                piece = stream.unconsumed_tail
    except zlib.error as error:
        raise _Again(f"is not in the encoding {encoding!r} that it claims ({error})") from None
    if not stream.eof:
        raise _Again(f"is cut inside its {encoding!r} encoding")


def _check_whole(answer: httpx.Response, path: str, body: Body) -> None:
    """Raise _Again for a page in place of the file, and for a file that is not whole."""
    page = _HTML.match(body.head)
    if page and (_BLOCK_PAGE.search(body.head) or _BLOCK_PAGE.search(body.tail)) and body.bytes < 1 << 16:
        raise _Again("the host limits requests (its page says so)", _retry_after(answer), limited=True)
    ending = path.rpartition(".")[2].lower()
    if page and ending in ("txt", "nc", "idx", "gz", "json"):
        raise _Again("an HTML page came in place of the file")
    if not body.bytes:
        raise _Again("the body is empty")
    if answer.num_bytes_downloaded < int(answer.headers.get("Content-Length", "0") or 0):
        raise _Again("the body is shorter than its Content-Length")
    if why := cut_short(body.head if body.bytes <= _ENDS else body.head + body.tail):
        raise _Again(why)
    if ending == "json" and not body.tail.rstrip().endswith((b"}", b"]")):
        raise _Again("the JSON is cut")
    if ending == "gz" and not body.head.startswith(GZIP) and b"|" not in body.head and b"---" not in body.head:
        raise _Again("is no gzip data")
    if not _stated(answer) and not any(mark in body.tail for mark in _END_MARKS):
        raise _Again("its length is not stated and nothing marks its end")


def _stated(answer: httpx.Response) -> bool:
    """Whether the answer says where it ends."""
    encoded = answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")
    return encoded or "Content-Length" in answer.headers or "chunked" in answer.headers.get("Transfer-Encoding", "")
