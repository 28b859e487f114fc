"""Experts permuted and put back: the assignment against scipy and all permutations, merges against the original."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merge.checkpoints import read_weights, transformers_model, write_weights
from trine.cli.main import main
from trine.errors import BadInput
from trine.manifest import read_manifest
from trine.merge.align import align_experts, match
from trine.merge.assignment import assign
from trine.merge.dtypes import Array
from trine.merge.engine import Options, merge
from trine.merge.jobs import Plan
from trine.merge.models import open_models
from trine.merge.plan import make_plan
from trine.merge.reading import load_recipe

LINEAR = "merge_method: linear\nmodels: [{{model: {0}/a}}, {{model: {0}/b}}]\nparameters: {{weight: 0.5}}\n"


@given(st.integers(1, 6), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_permutation_gains_more(count: int, seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.integers(-3, 4, (count, count)).astype(float) if whole else rng.standard_normal((count, count))
    chosen = assign(gains)
    assert sorted(chosen) == list(range(count))
    best = max(sum(gains[i, j] for i, j in enumerate(one)) for one in itertools.permutations(range(count)))
    assert gains[range(count), chosen].sum() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("count", [1, 33, 128])
def test_the_assignment_is_scipys(count: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    gains = np.random.default_rng(count).standard_normal((count, count))
    rows, columns = optimize.linear_sum_assignment(gains, maximize=True)
    assert gains[range(count), assign(gains)].sum() == pytest.approx(gains[rows, columns].sum(), rel=1e-12)


def test_values_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        assign(np.ones((2, 3)))
    with pytest.raises(ValueError, match="finite"):
        assign(np.full((2, 2), np.nan))


def test_groups_of_experts_stay_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gains = rng.standard_normal((6, 6))
        order = match(gains, groups=3)
        best = max(
            sum(gains[2 * i + a, 2 * j + (a ^ flips[i])] for i, j in enumerate(one) for a in range(2))
            for one in itertools.permutations(range(3))
            for flips in itertools.product((0, 1), repeat=3)
        )
        assert gains[range(6), order].sum() == pytest.approx(best)
        assert all({order[2 * i] // 2} == {order[2 * i + 1] // 2} for i in range(3))


def permuted(tensors: dict[str, Array], seed: int) -> dict[str, Array]:
    """The same function: the experts of each layer in another order, the router's rows along."""
    orders: dict[str, Array] = {}
    rng, out = np.random.default_rng(seed), {}
    for name, values in tensors.items():
        stem, found, rest = name.partition(".mlp.")
        order = orders.setdefault(stem, rng.permutation(4))
        if found and rest.startswith("experts.") and rest.split(".")[1].isdigit():
            number = int(rest.split(".")[1])
            source = f"{stem}.mlp.experts.{order[number]}.{rest.split('.', 2)[2]}"
            out[name] = tensors[source]
        elif rest in ("gate.weight", "router.gate.weight", "expert_bias") or rest.startswith("experts."):
            out[name] = values[order]
        else:
            out[name] = values
    return out


def stacked(tensors: dict[str, Array]) -> dict[str, Array]:
    """The experts of each layer in one tensor, as transformers holds them in memory."""
    out = {name: values for name, values in tensors.items() if ".experts." not in name}
    for stem in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        kinds = {k: np.stack([tensors[f"{stem}.experts.{e}.{k}_proj.weight"] for e in range(4)]) for k in _KINDS}
        out[f"{stem}.experts.gate_up_proj"] = np.concatenate([kinds["gate"], kinds["up"]], axis=1)
        out[f"{stem}.experts.down_proj"] = kinds["down"]
    return out


_KINDS = ("gate", "up", "down")


def plan_of(folder: Path, text: str = LINEAR) -> Plan:
    (folder / "merge.yaml").write_text(text.format(folder))
    recipe = load_recipe(folder / "merge.yaml")
    return make_plan(recipe, open_models(recipe.models))


@pytest.mark.parametrize("kind", ["qwen3_moe", "afmoe"])
@pytest.mark.parametrize("layout", ["single", "stacked"])
def test_a_permuted_model_merged_with_the_original_is_the_original(tmp_path: Path, kind: str, layout: str) -> None:
    transformers_model(tmp_path / "a", kind, 0)
    original = read_weights(tmp_path / "a")
    if kind == "afmoe":
        rng = np.random.default_rng(3)
        original |= {n: rng.standard_normal(4).astype(np.float32) for n in original if n.endswith("expert_bias")}
    if layout == "stacked":
        original = stacked(original)
    (tmp_path / "a" / "manifest.json").unlink(missing_ok=True)
    for name, tensors in (("a", original), ("b", permuted(original, 1))):
        write_weights(tmp_path / name / "model.safetensors", tensors, "BF16")
    a, b = read_weights(tmp_path / "a"), read_weights(tmp_path / "b")
    moved = [name for name in a if not np.array_equal(a[name], b[name])]
    assert len(moved) > 5
    plan = align_experts(plan_of(tmp_path))
    assert "moved" in plan.notes[-1]
    merge(plan, tmp_path / "out", Options())
    out = read_weights(tmp_path / "out")
    assert all(np.array_equal(out[name], a[name]) for name in a)
    merge(plan_of(tmp_path), tmp_path / "plain", Options())
    plain = read_weights(tmp_path / "plain")
    assert not all(np.array_equal(plain[name], a[name]) for name in moved)


def test_a_near_model_is_aligned_to_the_base(tmp_path: Path) -> None:
    transformers_model(tmp_path / "a", "qwen3_moe", 0, "float32")
    original = read_weights(tmp_path / "a")
    rng = np.random.default_rng(1)
    tuned = {n: v + 0.2 * v.std() * rng.standard_normal(v.shape).astype(np.float32) for n, v in original.items()}
    write_weights(tmp_path / "b" / "model.safetensors", permuted(tuned, 2))
    text = "merge_method: task_arithmetic\nbase_model: {0}/a\nmodels: [{{model: {0}/b, parameters: {{weight: 1}}}}]\n"
    merge(align_experts(plan_of(tmp_path, text)), tmp_path / "out", Options())
    out = read_weights(tmp_path / "out")
    assert all(np.allclose(out[name], tuned[name], atol=1e-6) for name in tuned)


def exact_adapter(folder: Path, base: dict[str, Array], wanted: dict[str, Array], rank: int) -> None:
    """An adapter in peft's layout that turns every matrix of `base` into that of `wanted`, if of such rank."""
    factors = {}
    for name in base:
        delta = wanted[name] - base[name]
        if delta.ndim != 2 or not delta.any():
            continue
        if delta.shape[0] <= rank:
            up, down = np.eye(delta.shape[0], rank, dtype=np.float32), np.zeros((rank, delta.shape[1]), np.float32)
            down[: delta.shape[0]] = delta
        else:
            up, down = np.zeros((delta.shape[0], rank), np.float32), np.eye(rank, delta.shape[1], dtype=np.float32)
            up[:, : delta.shape[1]] = delta
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    write_weights(folder / "adapter_model.safetensors", factors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))


def adapted(folder: Path) -> dict[str, Array]:
    """`a`, and `b` whose experts and router are a's in another order only by the adapter `lora`; the tensors of a."""
    transformers_model(folder / "a", "qwen3_moe", 0, "float32")
    transformers_model(folder / "b", "qwen3_moe", 1, "float32")
    original = read_weights(folder / "a")
    before = read_weights(folder / "b") | {n: v for n, v in original.items() if ".mlp." not in n}
    write_weights(folder / "b" / "model.safetensors", before)
    exact_adapter(folder / "lora", before, permuted(original, 1), 32)
    return original


@pytest.mark.parametrize("page", [False, True])
def test_what_an_adapter_adds_counts_when_experts_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: bool
) -> None:
    """The model without its adapter has nothing of `a`; with it, it is `a` in another order, and so is the merge."""
    original = adapted(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merge.yaml").write_text(LINEAR.format(".").replace("./b", "b+lora"))
    more = ["--report", "page.html"] if page else []
    assert main(["merge", "merge.yaml", "out", "--align-experts", *more]) == 0
    out = read_weights(tmp_path / "out")
    for name, one in original.items():
        np.testing.assert_allclose(out[name], one, atol=1e-6, err_msg=name)
    if page:
        data = json.loads((tmp_path / "page.html").read_text().split('id="data">')[1].split("</script>")[0])
        assert data["labels"] == ["b+lora", "the merge"]
        assert max(one["norms"][0] for one in data["layers"]) < 1e-4  # aligned, the models do not differ


def test_a_sweep_aligns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trine.merge import align

    original = adapted(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merge.yaml").write_text(LINEAR.format(".").replace("./b", "b+lora"))
    (tmp_path / "sweep.yaml").write_text(
        f"score: '{sys.executable} -c print(1) {{model}}'\nkeep: all\n"
        "vary: [{at: parameters.weight, values: [0.5, 1, 2]}]\n"
    )
    plain, calls = align._all_orders, []
    monkeypatch.setattr(align, "_all_orders", lambda *arguments: calls.append(1) or plain(*arguments))
    words = ["merge", "merge.yaml", "swept", "--sweep", "sweep.yaml", "--align-experts"]
    assert main(words) == 0
    assert len(calls) == 1
    for number in range(3):
        out = read_weights(tmp_path / "swept" / f"model-{number:04}")
        assert all(np.allclose(out[name], one, atol=1e-6) for name, one in original.items())
        notes = read_manifest(tmp_path / "swept" / f"model-{number:04}")["meta"]["notes"]
        assert "experts of 'b+lora' aligned in 4 layers: 12 moved" in notes
    assert main(["merge", "merge.yaml", "again", "--align-experts"]) == 0
    assert len(calls) == 2


def test_kept_orders_are_of_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trine.merge import align

    adapted(tmp_path)
    text = LINEAR.replace("{0}/b", "{0}/b+{0}/lora")
    plain, calls, kept = align._all_orders, [], tmp_path / "alignment.json"
    monkeypatch.setattr(align, "_all_orders", lambda *arguments: calls.append(1) or plain(*arguments))
    first = align_experts(plan_of(tmp_path, text), kept=kept)
    assert [job.models for job in align_experts(plan_of(tmp_path, text), kept=kept).jobs] == [
        j.models for j in first.jobs
    ]
    assert len(calls) == 1
    kept.write_bytes(kept.read_bytes()[:40])
    align_experts(plan_of(tmp_path, text), kept=kept)
    assert len(calls) == 2
    os.utime(tmp_path / "lora" / "adapter_model.safetensors", ns=(0, 0))
    align_experts(plan_of(tmp_path, text), kept=kept)
    align_experts(plan_of(tmp_path, text), kept=kept)
    assert len(calls) == 3
    align_experts(plan_of(tmp_path), kept=kept)
    assert len(calls) == 4


def test_models_without_experts_or_router_are_refused(tmp_path: Path) -> None:
    transformers_model(tmp_path / "a", "llama", 0)
    transformers_model(tmp_path / "b", "llama", 1)
    with pytest.raises(BadInput, match="no experts to align"):
        align_experts(plan_of(tmp_path))
    transformers_model(tmp_path / "c", "qwen3_moe", 0)
    tensors = {name: one for name, one in read_weights(tmp_path / "c").items() if "mlp.gate." not in name}
    for name in "ab":
        write_weights(tmp_path / name / "model.safetensors", tensors)
    with pytest.raises(BadInput, match="no router beside it"):
        align_experts(plan_of(tmp_path))


def test_going_on_with_another_order_is_refused(tmp_path: Path) -> None:
    from trine.merge.engine import partial_folder
    from trine.merge.journal import Journal

    for seed, name in enumerate("ab"):
        transformers_model(tmp_path / name, "qwen3_moe", seed)
    plan = plan_of(tmp_path)

    def killed(self: Journal, name: str, crc32: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Journal, "tensor", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(plan, tmp_path / "out", Options(threads=1))
    assert (partial_folder(tmp_path / "out") / "journal.jsonl").exists()
    with pytest.raises(BadInput, match="another config or options"):
        merge(align_experts(plan), tmp_path / "out", Options())
