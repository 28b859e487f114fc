"""lm-evaluation-harness's scores through its own transformers model and through trine, on three local tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.folders import TEXT, write_afmoe, write_llama
from trine.errors import BadInput
from trine.evaluate.catalog import Where, make_tasks
from trine.evaluate.items import summary
from trine.evaluate.scorer import ModelScorer

TASKS = ("tiny_choice", "tiny_text", "tiny_write")
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1.0}}
"""
BODIES = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "Say {{question}} "
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
num_fewshot: 1
fewshot_split: test
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "tiny_write": """
output_type: generate_until
doc_to_text: "the model reads {{question}}"
doc_to_target: "{{question}}"
generation_kwargs: {until: ["x", "1"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    words = "model reads café naïve 日本 text writes numbers 345 then".split()
    rows = [
        {
            "question": f"{a} {i}",
            "choices": [f"{a} it", "12", f"not {a} now"],
            "answer": i % 3,
            "text": TEXT[i : 40 * i + 9],
        }
        for i, a in enumerate(words)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for name, body in BODIES.items():
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, data=data) + body)
    (folder / "absent.yaml").write_text(YAML.format(name="tiny_absent", data=folder / "no.jsonl") + BODIES["tiny_text"])
    return folder


@pytest.mark.parametrize(("kind", "begins"), [("afmoe", True), ("llama", False), ("llama", True)])
def test_scores_equal_the_harness_own(tmp_path: Path, tasks: Path, kind: str, begins: bool) -> None:
    import lm_eval
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    from trine.evaluate.harness import HarnessLM

    folder = {"afmoe": write_afmoe, "llama": write_llama}[kind](tmp_path / "model", begins)
    own_model: Any = huggingface.HFLM
    evaluate: Any = lm_eval.simple_evaluate
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    # one row at a time: in larger batches the harness's last one can score otherwise than by itself
    peer: Any = own_model(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    scorer = ModelScorer(folder)
    options: dict[str, Any] = {"tasks": list(TASKS), "task_manager": manager, "bootstrap_iters": 0}
    theirs: Any = evaluate(model=peer, **options)
    ours: Any = evaluate(model=HarnessLM(scorer), **options)
    for name in TASKS:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, abs=1e-4, rel=1e-4), (name, metric)
        for a, b in zip(theirs["samples"][name], ours["samples"][name], strict=True):
            assert a["prompt_hash"] == b["prompt_hash"]
            if name == "tiny_write":
                assert a["resps"] == b["resps"]
            if name == "tiny_choice":
                for (left,), (right,) in zip(a["resps"], b["resps"], strict=True):
                    assert right[0] == pytest.approx(left[0], abs=1e-4)
                    assert right[1] == left[1]
    made = make_tasks(TASKS, Where(include=(tasks,)))
    for name, task in zip(TASKS, made, strict=True):
        items = task.run(scorer)
        figures = summary(task, items)
        assert figures["value"] == pytest.approx(theirs["results"][name][f"{task.metric},none"], abs=1e-4)
        assert len(items) == task.sizes()["items"] == 10
    assert made[1].metric == "bits_per_byte"
    assert not made[1].higher_is_better


def test_tasks_whose_data_is_absent_are_named_before_any_work(tasks: Path) -> None:
    where = Where(include=(tasks,))
    with pytest.raises(BadInput) as error:
        make_tasks(["tiny_absent", "tiny_choice:metric=f2", "tiny_choise"], where)
    text = str(error.value)
    assert "task 'tiny_absent': lm-evaluation-harness cannot load it or its data is not on disk" in text
    assert "no metric 'f2' (it has acc, acc_norm)" in text
    assert "task 'tiny_choise': no suite, task, file or folder of that name" in text
    (task,) = make_tasks(["tiny_choice:metric=acc,shots=0,limit=4"], where)
    assert task.about()["shots"] == {"tiny_choice": 0}
    assert task.metric == "acc"
    assert task.sizes() == {"items": 4, "requests": 12}


def test_public_data_is_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="task 'hellaswag'"):
        make_tasks(["hellaswag:shots=5"], Where())
