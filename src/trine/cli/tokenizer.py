"""trine tokenizer: one stage."""

from __future__ import annotations

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import ConfigFile, Options, Out, load, run_folder


def tokenizer(config: ConfigFile, /, *options: Options, out: Out = None) -> Shown:
    """Train a byte-level BPE with Trinity's pre-tokenizer on a corpus folder.

    Default --out: runs/NAME/tokenizer.

    Example: trine tokenizer recipes/quickstart.yaml --tokenizer.corpus corpora/mine --out tokenizers/mine
    """
    from trine.chain import make_tokenizer, section

    loaded = load(config, options)
    section(loaded, "tokenizer")
    target = out or run_folder(loaded, None) / "tokenizer"
    with watching() as watch:
        made = make_tokenizer(loaded.config, target.parent, target, watch.progress)
    text = f"{made['vocab_size']:,} tokens\ntokenizer {target}"
    return Shown(made | {"out": str(target)}, text)
