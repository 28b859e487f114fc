"""Faults of merging, for bench/faults.py: kills, flipped and missing bytes, a disk that fills up.

Four small models (the base, `single` in one file, `sharded` with an index, `sealed` with a manifest) are merged by
several methods in turn; each trial damages a copy of them, or a merge that was killed, and checks what comes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import TrineError
from trine.manifest import seal, verify
from trine.merge import engine
from trine.merge.engine import Options, merge, partial_folder
from trine.merge.journal import JOURNAL
from trine.merge.models import open_models
from trine.merge.plan import make_plan
from trine.merge.reading import load_recipe
from trine.weights.index import INDEX

METHODS = {
    "linear": "{weight: 0.5}",
    "ties": "{weight: 0.5, density: 0.6}",
    "dare_ties": "{weight: 0.5, density: 0.6}",
    "breadcrumbs": "{weight: 0.5, density: 0.8}",
    "task_arithmetic": "{weight: 0.5}",
}
SHARD_BYTES = 400_000
_MODELS = ("base", "single", "sharded", "sealed")


def in_child(work: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run `work` in a forked process, SIGKILL it after `kill_after` seconds; the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def write_models(home: Path, width: int = 64, layers: int = 6) -> None:
    """The four models: fp32 noise as bf16, the fine-tunes near the base."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (80, width)}
    for i in range(layers):
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (width,)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (80, width)}
    base: dict[str, Any] = {}
    for seed, model in enumerate(_MODELS):
        rng = np.random.default_rng(seed)
        noise = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        base = base or noise
        tensors = base if model == "base" else {name: base[name] + 0.1 * one for name, one in noise.items()}
        folder = home / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers, "dtype": "bfloat16"}))
        if model != "sharded":
            _write_file(folder / "model.safetensors", tensors)
        else:
            _write_shards(folder, tensors)
        if model == "sealed":
            seal(folder, "model", {})


def _write_file(path: Path, tensors: dict[str, Any]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, values in tensors.items():
        entries[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [place, place + 2 * values.size]}
        place += 2 * values.size
    header = json.dumps(entries).encode()
    blobs = [(values.view(np.uint32) >> 16).astype("<u2").tobytes() for values in tensors.values()]
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))


def _write_shards(folder: Path, tensors: dict[str, Any]) -> None:
    names, weight_map = list(tensors), {}
    for i in range(3):
        own = names[len(names) * i // 3 : len(names) * (i + 1) // 3]
        file = f"model-{i + 1:05}-of-00003.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in own})
        weight_map |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def merge_into(home: Path, out: Path, method: str, checksums: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """Merge the models below `home` as the command does; the manifest's record."""
    models = "".join(f"  - {{model: {home / one}, parameters: {METHODS[method]}}}\n" for one in _MODELS[1:])
    base = f"base_model: {home / 'base'}\n" if method != "linear" else ""
    config = home / f"{method}.yaml"
    if not config.exists():
        config.write_text(f"merge_method: {method}\n{base}models:\n{models}dtype: bfloat16\n")
    recipe = load_recipe(config)
    plan = make_plan(recipe, open_models(recipe.models))
    return merge(plan, out, Options(threads=2, shard_bytes=SHARD_BYTES, checksums=checksums))


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights."""
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(folder.glob("*.safetensors"))}


class _Row:
    """Models, and what an undisturbed merge by each method gives."""

    def __init__(self, folder: Path, width: int = 64, layers: int = 6) -> None:
        self.folder, self.home = folder, folder / "models"
        write_models(self.home, width, layers)
        self.expected, self.length = {}, 0.0
        for method in METHODS:
            began = time.monotonic()
            assert in_child(lambda: merge_into(self.home, folder / f"whole-{method}", method)) == 0  # noqa: B023
            self.length = max(self.length, time.monotonic() - began)
            self.expected[method] = weights(folder / f"whole-{method}")

    @contextlib.contextmanager
    def models(self) -> Iterator[Path]:
        """The models for one trial to damage, whole again afterwards; under one name, which random masks depend on."""
        kept = self.folder / "kept"
        shutil.copytree(self.home, kept)
        try:
            yield self.home
        finally:
            shutil.rmtree(self.home)
            kept.rename(self.home)


class KillMerge(_Row):
    """SIGKILL a merge at a random instant, up to three times, then go on: the same bits, in a folder that verifies."""

    trials = 100

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, width=128, layers=40)

    def trial(self, seed: int) -> None:
        rng, out = random.Random(seed), self.folder / f"out-{seed}"
        method = list(METHODS)[seed % len(METHODS)]
        for _ in range(rng.randint(1, 3)):
            in_child(lambda: merge_into(self.home, out, method), kill_after=rng.uniform(0, self.length))
            if out.exists():
                break
        if not out.exists() and in_child(lambda: merge_into(self.home, out, method)) != 0:
            raise AssertionError("the merge that went on failed")
        verify(out, "model")
        assert weights(out) == self.expected[method], "the merge that went on differs"
        assert not partial_folder(out).exists(), f"left behind: {partial_folder(out)}"
        shutil.rmtree(out)


class DamageMerge(_Row):
    """A flipped bit, or a file cut short: found every time, and the file named.

    In turn: headers of inputs that nothing verifies, an index, an input with a manifest or a checksum, and of a killed
    merge the journal and the output so far, which are done again to the same bits; and the finished output. A bit
    in what means nothing to a merge (`__metadata__` of a header, `metadata` of an index) is not flipped.
    """

    trials = 600

    def trial(self, seed: int) -> None:
        rng, method = random.Random(seed), list(METHODS)[seed % len(METHODS)]
        with self.models() as home:
            out = home / "out"
            match seed // 2 % 6:
                case 0:
                    self._refused(home, method, _damage_header(rng, home))
                case 1:
                    self._refused(home, method, _damage(rng, home / "sharded" / INDEX, after=b'"weight_map"'))
                case 2:
                    self._refused_by_checksum(home, method, rng)
                case 3:
                    self._repaired(home, method, rng, JOURNAL)
                case 4:
                    self._repaired(home, method, rng, "")
                case _:
                    merge_into(home, out, method)
                    path = rng.choice([one for one in sorted(out.iterdir()) if one.name != "manifest.json"])
                    _damage(rng, path)
                    with _refusal(path):
                        verify(out, "model")

    def _refused(self, home: Path, method: str, path: Path) -> None:
        with _refusal(path):
            merge_into(home, home / "out", method)
        assert not (home / "out").exists()

    def _refused_by_checksum(self, home: Path, method: str, rng: random.Random) -> None:
        path = home / rng.choice(["sealed", "single"]) / "model.safetensors"
        known = ((f"{path.parent.name}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()),)
        _damage(rng, path)
        with _refusal(path):
            merge_into(home, home / "out", method, known if path.parent.name == "single" else ())
        assert not (home / "out").exists()

    def _repaired(self, home: Path, method: str, rng: random.Random, name: str) -> None:
        out = home / "out"
        done = rng.randint(3, 12)
        assert in_child(lambda: _killed_after(done, lambda: merge_into(home, out, method))) == signal.SIGKILL
        folder = partial_folder(out)
        known = _journalled(folder)
        path = folder / (name or next(iter(known)))
        before = path.read_bytes()
        _damage(rng, path, known.get(path.name))
        now = path.read_bytes()
        record = merge_into(home, out, method)
        assert weights(out) == self.expected[method], f"{path.name}: damaged, and the merge that went on differs"
        lines_only = name == JOURNAL and before.startswith(now) and now[-1:] in (b"\n", b"")
        if not lines_only:  # whole lines less: what a kill a little earlier leaves
            assert any(path.name in note for note in record["meta"]["repaired"]), f"{path.name}: damaged, not noted"


class StrayByte(_Row):
    """A flipped bit in the numbers of an input that nothing verifies changes that tensor and no other."""

    trials = 100

    def trial(self, seed: int) -> None:
        rng, method = random.Random(seed), list(METHODS)[seed % len(METHODS)]
        with self.models() as home:
            path = home / "single" / "model.safetensors"
            data = bytearray(path.read_bytes())
            tensors = _tensors(path)
            at = rng.randrange(min(begin for begin, _ in tensors.values()), len(data))
            data[at] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            hit = next(name for name, (begin, end) in tensors.items() if begin <= at < end)
            said = ""
            try:
                merge_into(home, home / "out", method)
            except TrineError as error:
                said = str(error)
            if not (home / "out").exists():
                assert f"'{hit}' holds 1 values" in said, said
                assert not partial_folder(home / "out").exists()
                return
            whole = self.folder / f"whole-{method}"
            for file in whole.glob("*.safetensors"):
                before, after = file.read_bytes(), (home / "out" / file.name).read_bytes()
                for name, (begin, end) in _tensors(file).items():
                    assert name == hit or before[begin:end] == after[begin:end], f"{name} changed, not only {hit}"


class FullDisk(_Row):
    """A file system that is full before the merge is done: one message that says so, and nothing left behind.

    The space is what is free on a tmpfs of random size; half of the trials hide it from the check before the merge,
    as another program that fills the disk meanwhile would. Without the right to mount, a limit on the size of files.
    """

    trials = 60

    def trial(self, seed: int) -> None:
        rng, method = random.Random(seed), list(METHODS)[seed % len(METHODS)]
        need = sum(file.stat().st_size for file in (self.folder / f"whole-{method}").iterdir())
        with _small_disk(self.folder / f"disk-{seed}", rng.randrange(4096, need * 5 // 4)) as (disk, limit):
            said = self.folder / f"said-{seed}"
            status = in_child(lambda: self._merge(disk, method, limit, bool(seed % 2), said))
            out = disk / "out"
            if out.exists():
                assert status == 0
                verify(out, "model")
                assert weights(out) == self.expected[method]
            else:
                text = said.read_text()
                assert "GB free" in text or "cannot be written" in text, text
            assert [one.name for one in disk.iterdir() if one != out] == [], "left behind"

    def _merge(self, disk: Path, method: str, limit: int | None, hidden: bool, said: Path) -> None:
        import resource

        if hidden:
            engine._check_space = lambda *_: None
        try:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            merge_into(self.home, disk / "out", method)
        except TrineError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            said.write_text(str(error))


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[tuple[Path, int | None]]:
    """A tmpfs of `size` bytes, or where that cannot be mounted a folder and a limit for files."""
    folder.mkdir()
    mounted = shutil.which("mount") is not None and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=False, capture_output=True
        ).returncode
        == 0
    )
    try:
        yield folder, None if mounted else size
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def _refusal(path: Path) -> Iterator[None]:
    """What is inside must be refused with the file's name."""
    said = ""
    try:
        yield
    except TrineError as error:
        said = str(error)
    assert str(path) in said, f"{path} was damaged, the message does not name it: '{said}'"


def _damage(rng: random.Random, path: Path, within: tuple[int, int] | None = None, after: bytes = b"") -> Path:
    """Flip one bit of a file, or cut it; `within` a range, or behind some bytes of it."""
    data = bytearray(path.read_bytes())
    begin, end = within or (data.find(after) if after else 0, len(data))
    return _flip_or_cut(rng, path, data, rng.randrange(begin, end), 0.5)


def _flip_or_cut(rng: random.Random, path: Path, data: bytearray, place: int, flips: float) -> Path:
    """Write a file whose byte at `place` has a flipped bit, with probability `flips`, or which ends there."""
    if rng.random() < flips:
        data[place] ^= 1 << rng.randrange(8)
    else:
        del data[place:]
    path.write_bytes(data)
    return path


def _damage_header(rng: random.Random, home: Path) -> Path:
    files = [home / "single" / "model.safetensors", *sorted((home / "sharded").glob("*.safetensors"))]
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    nothing = data.index(b'"__metadata__"'), data.index(b"}, ") + 1
    place = rng.choice([one for one in range(8 + length) if not nothing[0] <= one < nothing[1]])
    return _flip_or_cut(rng, path, data, place, 0.7)


def _tensors(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes lie in a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    return {name: (8 + length + e["data_offsets"][0], 8 + length + e["data_offsets"][1]) for name, e in entries.items()}


def _killed_after(count: int, work: Callable[[], Any]) -> None:
    """Do `work`, and SIGKILL this process once `count` tensors are in the journal."""
    from trine.merge.journal import Journal

    written, plain = [], Journal.tensor

    def tensor(self: Journal, name: str, crc32: int) -> None:
        plain(self, name, crc32)
        written.append(name)
        if len(written) >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.tensor = tensor
    work()


def _journalled(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of a partial output with the range of the longest tensor that its journal holds."""
    lines = (folder / JOURNAL).read_bytes().splitlines()[1:]
    events = [json.loads(line.partition(b" ")[2]) for line in lines]
    done = {event["tensor"] for event in events if "tensor" in event}
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        spans = [span for name, span in _tensors(path).items() if name in done]
        if spans:
            found[path.name] = max(spans, key=lambda span: span[1] - span[0])
    return found
