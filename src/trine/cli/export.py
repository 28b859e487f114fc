"""trine export: a checkpoint, an adapter with its base, or any AFMoE folder, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown


def export(
    run: Annotated[Path, Parameter(help="A run folder, a model folder in either layout, or an adapter of training.")],
    out: Annotated[Path, Parameter(help="The folder to make; it must not exist yet.")],
    /,
    *,
    step: Annotated[int | None, Parameter(help="The checkpoint's step. Default: the newest.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(help="Type of the weights.")] = "float32",
    verify: Annotated[bool, Parameter(help="Compare the logits with transformers'; exit 3 when they differ.")] = False,
) -> Shown:
    """Write a Hugging Face folder: per-expert safetensors, config, generation config, tokenizer.

    Example: trine export runs/quickstart my-model --verify
    """
    from trine.chain import pick_checkpoint
    from trine.errors import BadInput
    from trine.model.hf import check_parity, export_folder, require_parity

    with watching() as watch:
        if (run / "config.json").is_file() or (run / "adapter_config.json").is_file():
            if step is not None:
                raise BadInput(f"{run}: is a model folder, which has no steps; leave --step out")
            source = run
        else:
            source = pick_checkpoint(run, step, watch)
        export_folder(source, out, dtype, watch.progress)
        record: dict[str, Any] = {"out": str(out), "from": str(source), "dtype": dtype}
        text = f"model    {out} (from {source.name})"
        if verify:
            record["parity"] = check_parity(out)
            require_parity(record["parity"], out)
            figure = record["parity"]["max_relative_logit_difference"]
            version = record["parity"]["transformers"]
            text += f"\nproved   transformers {version} computes the same logits (relative {figure:.1e})"
    return Shown(record, text)
