"""The difference of two models to a low-rank adapter in peft's format, a matrix at a time.

The best rank-r approximation of each difference is its r largest singular triples (Eckart & Young 1936): B = U sqrt(S),
A = sqrt(S) V^T, with alpha = r so that peft adds B A as it is. Where a matrix is much wider than the rank, the triples
come from a random range and power iterations (Halko et al. 2011, arXiv:0909.4061, algorithm 4.4), exact for
differences whose rank is at most r.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trine import __version__
from trine.errors import BadInput
from trine.manifest import publish, sha256_file
from trine.merge.folder import how_again
from trine.progress import Progress, silent
from trine.weights.hub import model_folder
from trine.weights.reader import TensorReader

_OVERSAMPLED, _POWERS = 16, 6


@dataclass
class _Seen:
    """What has been extracted so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Tensors that differ and have no place in the adapter."""
    total: float = 0.0
    kept: float = 0.0
    worst: tuple[float, str] = (0.0, "")


def extract_lora(
    tuned: str, base: str, out: Path, rank: int, command: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Write the adapter that turns `base` into `tuned` into the new folder `out`; what it keeps.

    `command` is for its card.
    `relative_error` is the norm of what the adapter misses over the norm of all matrix differences. Raises BadInput
    when `out` exists, or the models do not have the same matrices or differ in none.
    """
    if rank < 1:
        raise BadInput(f"--rank {rank}: expected at least 1")
    if out.exists():
        raise BadInput(f"{out}: already exists; name another folder, or remove it first")
    readers = TensorReader(model_folder(tuned)), TensorReader(model_folder(base))
    names = _common(*readers)
    seen = _Seen()
    for done, name in enumerate(names):
        progress(done, len(names), "extract: tensors")
        _one(name, *readers, rank, seen)
    progress(len(names), len(names), "extract: tensors")
    if not seen.tensors:
        raise BadInput(
            f"'{tuned}' and '{base}': no matrix of a linear layer differs, so there is no adapter to extract"
        )
    found = {
        "rank": rank,
        "modules": len(seen.modules),
        "relative_error": (max(0.0, seen.total - seen.kept) / seen.total) ** 0.5,
        "worst": {"error": seen.worst[0], "module": seen.worst[1]},
        "left_out": seen.left_out,
    }
    files = sorted({info.file for reader in readers for info in reader.tensors.values()})
    found["inputs"] = {str(file): sha256_file(file) for file in files}
    with publish(out, "adapter", {"verb": "lora extract", "command": command, **found}) as folder:
        _write(folder, seen, base, rank)
        (folder / "README.md").write_text(_card(tuned, base, command, found))
    return found


def _common(tuned: TensorReader, base: TensorReader) -> list[str]:
    for one, other in ((tuned, base), (base, tuned)):
        if missing := sorted(set(one.tensors) - set(other.tensors)):
            raise BadInput(f"{other.folder}: has no {missing[0]}, which {one.folder} has")
    for name, info in tuned.tensors.items():
        if info.shape != base.tensors[name].shape:
            shapes = f"{list(info.shape)} in {tuned.folder}, {list(base.tensors[name].shape)} in {base.folder}"
            raise BadInput(f"{name}: {shapes}; an adapter cannot change a shape")
    return list(tuned.tensors)


def _one(name: str, tuned: TensorReader, base: TensorReader, rank: int, seen: _Seen) -> None:
    after = tuned.read(name)
    delta = after.float() - base.read(name).float()
    if not torch.isfinite(delta).all():
        raise BadInput(f"{tuned.folder}: '{name}' holds NaN or infinity, or {base.folder} does")
    if not delta.any():
        return
    if delta.ndim != 2 or not name.endswith("_proj.weight") or ".experts." in name:
        seen.left_out.append(name)
        return
    module, size = name.removesuffix(".weight"), float(delta.double().square().sum())
    left, values, right = _largest(delta, rank, name)
    kept = float(values.double().square().sum())
    error = (max(0.0, size - kept) / size) ** 0.5
    seen.total, seen.kept = seen.total + size, seen.kept + kept
    seen.worst = max(seen.worst, (error, module))
    seen.modules.append(module)
    root, missing = values.sqrt(), rank - len(values)
    down = torch.nn.functional.pad(root[:, None] * right, (0, 0, 0, missing))
    seen.tensors[f"base_model.model.{module}.lora_A.weight"] = down.contiguous()
    up = torch.nn.functional.pad(left * root, (0, missing))
    seen.tensors[f"base_model.model.{module}.lora_B.weight"] = up.contiguous()


def _largest(delta: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triples, U [m, r], S [r], V^T [r, n]; the random range is keyed by the name."""
    width = rank + _OVERSAMPLED
    if min(delta.shape) <= 4 * width:
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
    probe = torch.randn(delta.shape[1], width, generator=torch.Generator().manual_seed(key))
    span = torch.linalg.qr(delta @ probe).Q
    for _ in range(_POWERS):
        span = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ span).Q).Q
    inner, values, right = torch.linalg.svd(span.T @ delta, full_matrices=False)
    return (span @ inner)[:, :rank], values[:rank], right[:rank]


def _write(folder: Path, seen: _Seen, base: str, rank: int) -> None:
    from safetensors.torch import save_file

    save_file(seen.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": seen.modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _card(tuned: str, base: str, command: str, found: dict[str, Any]) -> str:
    """README.md: what the adapter came from and the command that makes it again."""
    worst = found["worst"]
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(base)}",
        "tags: [lora, trine]",
        "---",
        "",
        f"# What turns `{base}` into `{tuned}`, at rank {found['rank']}",
        "",
        f"Made by trine {__version__}: {found['modules']} modules. It misses {found['relative_error']:.2%} of the norm "
        f"of the differences; most, {worst['error']:.2%}, in `{worst['module']}`. The SHA-256 of every file is in "
        "`manifest.json`.",
        "",
        *how_again(command, "its paths", found["inputs"].items()),
    ]
    if rest := found["left_out"]:
        lines += [
            "## Not in it",
            "",
            "Tensors that differ and have no place in an adapter:",
            "",
            *(f"- `{one}`" for one in rest),
            "",
        ]
    return "\n".join(lines)
