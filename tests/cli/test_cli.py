"""The command: help, exit codes, --json, and every way of asking for the wrong thing. Mostly in this process;
tests/e2e runs the installed command over the whole chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.model.shapes import small_model
from trine.cli import live
from trine.cli.main import VERBS, main
from trine.model.hf import save_model

CONFIG = "model: {hidden_size: 32, num_hidden_layers: 2, vocab_size: 64, head_dim: 16}\ntrain: {steps: 5}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    return path


class Said:
    """What a command printed and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        self.code = main([str(word) for word in words])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def test_help_names_every_verb(trine: Command) -> None:
    """bench/startup.py holds it to 0.3 s, test_import_graph.py to the light core."""
    done = trine("--help")
    assert done.returncode == 0
    for verb in (*VERBS, "config"):
        assert verb in done.stdout


@pytest.mark.parametrize("verb", [*VERBS, "config"])
def test_help_of_each_verb_has_a_runnable_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [verb, "show", "--help"] if verb == "config" else [verb, "--help"]
    said = Said(capsys, *words)
    assert said.code == 0
    assert f"Example: trine {verb}" in " ".join(said.out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from trine import __version__

    assert __version__ in Said(capsys, "--version").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x"], 'Did you mean "train"'),
        (["train"], "CONFIG requires an argument"),
        (["train", "absent.yaml"], "absent.yaml: no such file"),
        (["export", "absent", "out"], "has no checkpoints/"),
        (["report", "absent"], "has no metrics.jsonl"),
        (["generate", "absent", "--prompt", "x"], "no such file"),
        (["generate", "absent", "--temperature", "-1", "--prompt", "x"], "-1"),
        (["generate", "absent", "--prompt", "x", "--prompts", "y"], "exclude each other"),
        (["generate", "absent", "--prompts", "absent.jsonl"], "absent.jsonl: cannot be read"),
        (["generate", "absent", "--prompt", "x", "--system", "y"], "--system goes with --chat"),
        (["generate", "absent", "--prompt", "x", "--out", "absent/out.jsonl"], "absent: no such folder"),
        (["export", "a", "b", "--dtype", "int4"], "int4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_exits_2_with_a_line_and_no_traceback(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = Said(capsys, *words)
    assert done.code == 2
    assert done.out == ""
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())
    as_json = Said(capsys, *words, "--json")
    assert as_json.json["exit_code"] == 2
    assert as_json.json["error"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "prompts.jsonl:2: not JSON"),
        ("[1]", 'prompts.jsonl:2: expected an object with either "prompt" or "messages"'),
        ('{"prompt": 3}', "prompts.jsonl:2: prompt is 3; expected a text"),
        ('{"messages": [{"role": "user"}]}', "prompts.jsonl:2: messages is"),
    ],
)
def test_a_bad_line_of_prompts_is_named(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "x"}}\n{line}\n')
    done = Said(capsys, "generate", tmp_path, "--prompts", path)
    assert done.code == 2
    assert said in done.err


def test_check_lists_everything_and_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = Said(capsys, "check", config, "--json")
    assert good.code == 0
    assert good.json["sections"] == ["model", "optim", "train"]
    bad = Said(capsys, "check", config, "--train.stpes", 5, "--model.head_dim", 15)
    assert bad.code == 2
    assert "did you mean 'steps'" in bad.err
    assert "head_dim 15 is odd" in bad.err
    config.write_text("corpus: {sources: [{name: a, path: /no/such/place}]}\n")
    assert "no such file or folder: /no/such/place" in Said(capsys, "check", config).err


def test_config_show_prints_what_loads_back_and_counts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Said(capsys, "config", "show", config)
    assert "sequence_length: 512" in shown.out
    assert "# parameters:" in shown.out
    again = config.with_name("again.yaml")
    again.write_text(shown.out)
    one, other = (Said(capsys, "config", "show", path, "--json").json for path in (config, again))
    assert one == other
    preset = Said(capsys, "config", "show", config, "--model", "{preset: nano}", "--json").json
    assert round(preset["parameters"]["total"] / 1e9, 2) == 6.12


def test_schema_describes_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schema = Said(capsys, "schema", "--json").json
    assert set(schema["properties"]) >= {"corpus", "model", "train"}
    assert schema["additionalProperties"] is False
    Said(capsys, "schema", "--out", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == schema


def test_missing_section_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Said(capsys, "corpus", config)
    assert done.code == 2
    assert "has no section 'corpus:'" in done.err


def test_dry_run_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = Said(capsys, "train", config, "--dry-run", "--out", tmp_path / "run", "--json").json
    assert plan["stages"]["train"]["tokens"] == 5 * 16 * 512
    assert plan["stages"]["train"]["parameters"]["total"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_plan_counts_from_the_config_alone_and_refuses_what_cannot_fit(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = Said(capsys, "plan", config, "--quick", "--json").json
    assert plan["work"]["tokens"] == 5 * 16 * 512
    assert plan["memory"]["gradients"] == 4 * plan["model"]["parameters"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]
    assert "MFLOPs a token" in Said(capsys, "plan", config, "--quick").out
    large = Said(capsys, "plan", config, "--model", "{preset: large}", "--json")
    assert large.code == 3
    assert large.json["model"]["parameters"] > 3.9e11
    assert "cannot fit: memory: needs" in large.json["error"]
    config.write_text("model: {hidden_size: 32}\ntrain: {}\n")
    assert "add --model.vocab_size N" in Said(capsys, "plan", config).err


def test_a_kept_plan_holds_the_run_folder_for_its_config(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    kept = Said(capsys, "plan", config, "--quick", "--keep", "--out", run, "--json").json
    assert json.loads((run / "plan.json").read_text())["model"] == kept["model"]
    other = Said(capsys, "plan", config, "--quick", "--keep", "--out", run, "--train.steps", 6)
    assert "holds a run of another config" in other.err


def test_a_foreign_folder_is_not_taken_for_a_run(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    done = Said(capsys, "train", config, "--out", out)
    assert done.code == 2
    assert "thesis.tex" in done.err
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    missing = Said(capsys, "train", config, "--out", tmp_path / "new")
    assert missing.code == 2
    assert not (tmp_path / "new").exists()


def test_init_and_export_between_layouts(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = Said(capsys, "init", config, tmp_path / "random", "--seed", 3, "--json")
    assert made.json["seed"] == 3
    done = Said(capsys, "export", tmp_path / "random", tmp_path / "copy", "--verify", "--json")
    assert done.code == 0, done.err
    assert done.json["parity"]["passed"]
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        tmp_path / "random" / "model.safetensors"
    ).read_bytes()
    again = Said(capsys, "init", config, tmp_path / "random")
    assert (again.code, "already exists" in again.err) == (2, True)
    config.write_text("model: {hidden_size: 32}\n")
    assert "model.vocab_size is not known" in Said(capsys, "init", config, tmp_path / "other").err


def test_a_check_that_says_no_exits_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(small_model(), tmp_path / "model")
    monkeypatch.setattr("trine.model.hf.PARITY_TOLERANCE", -1.0)
    done = Said(capsys, "export", tmp_path / "model", tmp_path / "out", "--verify", "--json")
    assert done.code == 3
    assert done.json["exit_code"] == 3
    assert "logits differ" in done.err


def test_faults_of_trine_and_of_the_disk_exit_1(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in (
        (RuntimeError("oh"), "fault of trine"),
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device"),
    ):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("trine.cli.check.load", fail)
        done = Said(capsys, "check", config)
        assert done.code == 1
        assert said in done.err
        assert "Traceback" not in done.err


def test_a_missing_package_names_its_extra(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib")

    monkeypatch.setattr("trine.cli.check.load", fail)
    assert "pip install 'trine[data]'" in Said(capsys, "check", config).err


def test_bad_input_leaves_a_prepared_folder_as_it_was(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run" / "corpus").mkdir(parents=True)
    assert Said(capsys, "train", config, "--out", tmp_path / "run").code == 2
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["corpus"]


RECORD = {
    "step": 7,
    "loss": 2.5,
    "tokens_per_second": 1234.5,
    "mfu": 0.42,
    "spikes": 2,
    "max_vio": 0.5,
    "router": {"dead": [0, 2]},
    "bits_per_byte": {"heldout": 1.25},
}
INFO = {
    "step": 2,
    "steps": 10,
    "tokens": 1000,
    "parameters": 1000,
    "environment": {"device": "cpu", "threads": "2"},
}


def test_plain_lines_tell_loss_speed_router_and_eta(capsys: pytest.CaptureFixture[str]) -> None:
    with live.watching() as watch:
        assert isinstance(watch, live.Plain)
        watch.progress(0, 9, "corpus: files")
        watch.progress(9, 9, "corpus: files")
        watch.on_start(INFO)
        watch.on_step(RECORD)
        watch.on_end({"seconds": 61, "checkpoint": "x/step-10"})
    err = capsys.readouterr().err
    for part in (
        "9/9 files",
        "from step 2",
        "7/10",
        "loss 2.500",
        "1,234 tokens/s",
        "MFU 42%",
        "2 loss spikes",
        "MaxVio 0.50, 2 dead experts",
    ):
        assert part in err
    for part in ("heldout 1.250 bits/byte", "ETA 0:00", "done in 1:01"):
        assert part in err


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with live.watching() as watch:
        assert isinstance(watch, live.Bars)
        watch.progress(3, None, "corpus: files")
        watch.on_start(INFO)
        watch.on_step(RECORD)
        watch.on_event("[bold]not markup")
        watch.on_end({"seconds": 61, "checkpoint": "x/step-10"})
    err = capsys.readouterr().err
    assert "1.250 bits/byte" in err
    assert "[bold]not markup" in err


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert live.clock(seconds) == text
