"""Files of EDGAR into a store: what is there is not asked for again, what fails is said, the rest goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from trine.data.edgar.pace import Pace
from trine.data.edgar.site import Policy, Site
from trine.data.edgar.store import Store
from trine.errors import TrineError
from trine.progress import Progress, silent

_TOGETHER = 6
_POLL_SECONDS = 0.25


def cache_folder() -> Path:
    """Where trine keeps what all its processes share: $XDG_CACHE_HOME/trine/edgar."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trine" / "edgar"


def fetch(
    paths: Iterable[str],
    folder: Path,
    policy: Policy,
    progress: Progress = silent,
    anew: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Download every path below the policy's base into the store `folder`; those in `anew` even when it has them.

    Returns `files` (path to file), `fetched`, `present`, `bytes` (of what was fetched), `requests` and `failed` (path
    to reason). Raises BadInput for a folder that holds something else.
    """
    wanted = list(dict.fromkeys(paths))
    host = httpx.URL(policy.base_url).host
    pace = Pace(cache_folder() / f"pace-{host}.json", policy.per_second)
    store = Store(folder)
    try:
        return asyncio.run(_Fetching(store, policy, progress, anew).run(wanted, pace))
    finally:
        store.close()


class _Fetching:
    def __init__(self, store: Store, policy: Policy, progress: Progress, anew: frozenset[str]) -> None:
        self.store, self.policy, self.progress, self.anew = store, policy, progress, anew
        self.files: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        self.fetched = self.bytes = self.total = 0

    async def run(self, wanted: list[str], pace: Pace) -> dict[str, Any]:
        self.total = len(wanted)
        queue = iter(wanted)
        held: list[str] = []
        async with Site(self.policy, pace) as site:
            await asyncio.gather(*(self._work(site, queue, held) for _ in range(_TOGETHER)))
            await asyncio.gather(*(self._work(site, rest, None) for rest in [iter(held)] * _TOGETHER))
            requests = site.requests
        return {
            "files": self.files,
            "fetched": self.fetched,
            "present": len(self.files) - self.fetched,
            "bytes": self.bytes,
            "requests": requests,
            "failed": self.failed,
        }

    async def _work(self, site: Site, queue: Iterable[str], held: list[str] | None) -> None:
        """Take paths until none is left; one that another process is at goes to `held`, or is waited for."""
        for path in queue:
            if not await self._one(site, path, wait=held is None) and held is not None:
                held.append(path)
            done = len(self.files) + len(self.failed)
            self.progress(done, self.total, f"fetch: files, {self.bytes / 1e6:,.1f} MB")

    async def _one(self, site: Site, path: str, wait: bool) -> bool:
        """Whether `path` is settled: present, fetched, or failed for good."""
        if path not in self.anew and (file := self.store.find(path)):
            self.files[path] = file
            return True
        while not self.store.claim(path):
            if not wait:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        try:
            file = None if path in self.anew else self.store.find(path)
            if file is None:
                file = await self._download(site, path)
            self.files[path] = file
        except TrineError as error:
            self.failed[path] = str(error).removeprefix(f"{path}: ")
        finally:
            self.store.release(path)
        return True

    async def _download(self, site: Site, path: str) -> Path:
        with self.store.temporary() as file:
            body = await site.get(path, file)
            kept = self.store.add(path, self.policy.base_url, file, body.sha256)
        self.fetched += 1
        self.bytes += body.bytes
        return kept
