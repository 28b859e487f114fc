"""Runs: resumed bit for bit, refused when foreign, robust to damage, free of anything but the small core."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.model.shapes import SMALL
from tests.tokens import write_tokens
from trine.errors import BadInput, TrineError
from trine.manifest import verify
from trine.model.config import ModelConfig
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig
from trine.train.checkpoint import list_checkpoints
from trine.train.config import TrainConfig
from trine.train.fast import cpp_compiler
from trine.train.loop import fit
from trine.train.metrics import CLOCK, Unwatched, read_metrics

MODEL = ModelConfig.model_validate(SMALL | {"vocab_size": None})
OPTIM = OptimConfig(muon=MuonConfig(lr=0.02), adamw=AdamWConfig(lr=0.01))


def config(**changes: Any) -> TrainConfig:
    values = {
        "steps": 12,
        "sequence_length": 24,
        "batch_sequences": 4,
        "micro_batch_sequences": 2,
        "threads": 1,
        "checkpoint_every_steps": 3,
        "eval": {"every_steps": 4},
    }
    return TrainConfig.model_validate(values | changes)


def trace(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k not in CLOCK} for one in read_metrics(run / "metrics.jsonl")]


def weights(run: Path) -> bytes:
    return (list_checkpoints(run)[0] / "model.safetensors").read_bytes()


class Stop(Unwatched):
    """Ends the run after a step, as an interrupt would."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.events: list[str] = []

    def on_step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt

    def on_event(self, text: str) -> None:
        self.events.append(text)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    summary = fit(MODEL, OPTIM, config(), tokens, run)
    assert summary["step"] == 12
    assert summary["tokens"] == 12 * 4 * 24
    return run


def test_a_run_learns_measures_and_keeps_the_newest_checkpoints(whole: Path) -> None:
    records = read_metrics(whole / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    assert [r["step"] for r in records if "bits_per_byte" in r] == [4, 8, 12]
    assert set(records[3]["bits_per_byte"]) == {"heldout"}
    assert [p.name for p in list_checkpoints(whole)] == ["step-12", "step-9"]
    for folder in list_checkpoints(whole):
        verify(folder, "checkpoint")


@pytest.mark.parametrize("stop", [1, 3, 5, 11])
def test_resumed_after_an_interrupt_bit_for_bit(tokens: Path, whole: Path, tmp_path: Path, stop: int) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, OPTIM, config(), tokens, run, Stop(stop))
    fit(MODEL, OPTIM, config(loader_workers=3), tokens, run)
    assert trace(run) == trace(whole)
    assert weights(run) == weights(whole)


def test_killed_at_random_moments_and_resumed_bit_for_bit(tokens: Path, whole: Path, tmp_path: Path) -> None:
    """A seeded sample of what bench/faults.py does at length: SIGKILL, then the same command again."""
    code = (
        "import sys; from pathlib import Path; from tests.train.test_loop import *;"
        "print('ready', flush=True); fit(MODEL, OPTIM, config(), Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    run = tmp_path / "run"
    for wait in (0.15, 0.4, 0.7):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tokens), str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for folder in list_checkpoints(run) if run.exists() else []:
            verify(folder, "checkpoint")
    fit(MODEL, OPTIM, config(), tokens, run)
    assert trace(run) == trace(whole)
    assert weights(run) == weights(whole)
    assert not list((run / "checkpoints").glob(".*"))


def test_a_finished_run_is_left_as_it_is(tokens: Path, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    summary = fit(MODEL, OPTIM, config(), tokens, whole)
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert summary["loss"] == read_metrics(whole / "metrics.jsonl")[-1]["loss"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tokens: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    file = run / "checkpoints" / "step-12" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    observer = Stop(-1)
    fit(MODEL, OPTIM, config(), tokens, run, observer)
    assert any("step-12" in text and "optimizer.safetensors" in text for text in observer.events)
    assert trace(run) == trace(whole)
    assert weights(run) == weights(whole)
    assert (run / "checkpoints" / "damaged-step-12").is_dir()


def test_no_whole_checkpoint_at_all_is_an_error_not_a_fresh_start(tokens: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in list_checkpoints(run):
        (folder / "state.json").write_text("{}")
    with pytest.raises(TrineError, match="none of 2 checkpoints is whole"):
        fit(MODEL, OPTIM, config(), tokens, run)


def test_another_config_or_other_tokens_are_refused(tokens: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="another config"):
        fit(MODEL, OPTIM, config(seed=1), tokens, whole)
    with pytest.raises(BadInput, match="another config or other tokens"):
        fit(MODEL, OPTIM, config(), write_tokens(tmp_path / "tokens", seed=9), whole)


@pytest.mark.parametrize(
    ("model", "train", "said"),
    [
        ({"vocab_size": 50}, {}, "below the tokenizer's 97"),
        ({}, {"eval": {"sets": ("heldut",)}}, "did you mean 'heldout'"),
        ({}, {"device": "cuda"}, "no CUDA device"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step(
    tokens: Path, tmp_path: Path, model: dict[str, Any], train: dict[str, Any], said: str
) -> None:
    import torch

    if train.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    shape = ModelConfig.model_validate(SMALL | {"vocab_size": None} | model)
    with pytest.raises(BadInput, match=said):
        fit(shape, OPTIM, config(**train), tokens, tmp_path / "r")


def test_a_second_process_is_refused(tokens: Path, tmp_path: Path) -> None:
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another process"):
            fit(MODEL, OPTIM, config(), tokens, run)


def test_recomputation_gives_the_same_run(tokens: Path, whole: Path, tmp_path: Path) -> None:
    fit(MODEL, OPTIM, config(recompute=True), tokens, tmp_path / "run")
    assert trace(tmp_path / "run") == trace(whole)
    assert weights(tmp_path / "run") == weights(whole)


def test_checkpoint_opens_in_transformers(whole: Path) -> None:
    from transformers import AfmoeForCausalLM

    folder = list_checkpoints(whole)[0]
    loaded: Any = AfmoeForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_experts == 8


BLOCKED = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCK else self.finder.find_spec(name, path, target)
BLOCK = {"cyclopts", "rich", "ruamel", "jinja2", "pyarrow", "tokenizers", "zstandard", "httpx", "lxml", "psutil",
         "tensorboard", "trackio", "wandb", "pytest", "pandas", "sklearn", "scipy", "datasets", "accelerate"}
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from pathlib import Path
from trine.model.config import ModelConfig
from trine.optim.config import OptimConfig
from trine.train.config import TrainConfig
from trine.train.loop import fit
import trine
fit(ModelConfig(**eval(sys.argv[3])), OptimConfig(), TrainConfig(steps=2, sequence_length=24, batch_sequences=4,
    micro_batch_sequences=2), Path(sys.argv[1]), Path(sys.argv[2]))
model = trine.load_model(Path(sys.argv[2]) / "checkpoints" / "step-2")
from trine.train.metrics import read_metrics
assert len(read_metrics(Path(sys.argv[2]) / "metrics.jsonl")) == 2
foreign = {m.split(".")[0] for m in sys.modules} & BLOCK
assert not foreign, foreign
"""


def test_two_steps_with_every_other_package_blocked(tokens: Path, tmp_path: Path) -> None:
    shape = repr({k: v for k, v in SMALL.items() if k != "vocab_size"})
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tokens), str(tmp_path / "run"), shape],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_trackers_receive_what_metrics_hold(tokens: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    fit(MODEL, OPTIM, config(track=("tensorboard",)), tokens, run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    assert logged == [(r["step"], pytest.approx(r["loss"])) for r in trace(run)]
    assert "router/max_vio/1" in events.Tags()["scalars"]
    assert "bits_per_byte/heldout" in events.Tags()["scalars"]


def test_state_is_plain_json_and_safetensors(whole: Path) -> None:
    folder = list_checkpoints(whole)[0]
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["sequence"]) == (12, 48)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}


def test_a_run_through_the_document_buffer_is_resumed_bit_for_bit(tokens: Path, whole: Path, tmp_path: Path) -> None:
    buffered = {"packing": "rsdb", "rsdb_documents": 6}
    fit(MODEL, OPTIM, config(**buffered), tokens, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, OPTIM, config(**buffered), tokens, tmp_path / "cut", Stop(8))
    fit(MODEL, OPTIM, config(loader_workers=3, **buffered), tokens, tmp_path / "cut")
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole") != trace(whole)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


RESUME = """
import sys
from pathlib import Path
from trine.model.config import ModelConfig
from trine.optim.config import OptimConfig
from trine.train.config import TrainConfig
from trine.train.loop import fit

configs = [kind.model_validate_json(text) for kind, text in zip((ModelConfig, OptimConfig, TrainConfig), sys.argv[1:4])]
fit(*configs, Path(sys.argv[4]), Path(sys.argv[5]))
"""


@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_a_compiled_run_is_resumed_bit_for_bit_by_a_process_that_compiles_anew(tokens: Path, tmp_path: Path) -> None:
    """With one sparse block, which is a third of the time to compile."""
    one_block = MODEL.model_copy(update={"num_hidden_layers": 1, "num_dense_layers": 0, "layer_types": None})
    train = config(compile="always", steps=6)
    fit(one_block, OPTIM, train, tokens, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(one_block, OPTIM, train, tokens, tmp_path / "cut", Stop(4))
    texts = [one.model_dump_json() for one in (one_block, OPTIM, train)]
    subprocess.run(
        [sys.executable, "-c", RESUME, *texts, str(tokens), str(tmp_path / "cut")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        check=True,
    )
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    state = json.loads((tmp_path / "cut" / "checkpoints" / "step-6" / "state.json").read_text())
    assert state["environment"]["compiled"] == "yes"
