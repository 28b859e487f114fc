"""The parts of bench/gpu.py: each yields rows. Errors are relative Frobenius norms against fp32 or float64."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trine.data.loader import Batch
from trine.model.afmoe import Afmoe
from trine.model.attention import attend
from trine.model.causal import CausalModel
from trine.model.config import ModelConfig
from trine.model.decode import generate
from trine.model.flex import block_mask, flex
from trine.model.flops import training_flops
from trine.model.hf_config import write_config
from trine.model.init import init_model
from trine.moe.experts import Experts
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.optim.newton_schulz import orthogonalize
from trine.train.config import TrainConfig
from trine.train.fast import compile_blocks, uncompiled
from trine.train.loss import chunked_cross_entropy
from trine.train.meters import peak_flops
from trine.train.step import train_step

Row = dict[str, Any]
NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense bf16 products by the maker's data sheet (SXM cards)."""
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
LR_FACTOR = 1e-3
"""The weights hardly move, so that every step does the same work."""


@dataclass(frozen=True)
class Where:
    """What a part runs on."""

    device: torch.device
    small: bool
    """A rehearsal: tiny shapes, no goals."""


def run(name: str, rehearse: bool) -> Iterator[Row]:
    """The rows of part `name`; with `rehearse` on the CPU."""
    torch.manual_seed(0)
    where = Where(torch.device("cpu" if rehearse else "cuda"), rehearse)
    parts: dict[str, Callable[[Where], Iterator[Row]]] = {
        "attention": attention,
        "experts": experts,
        "loss": loss,
        "muon": muon,
        "step": step,
        "generate": generation,
        "moe": moe,
        "dense": dense,
    }
    for row in parts[name](where):
        yield row | {"goal": 0.0} if rehearse else row


def within(name: str, error: float, limit: float) -> Row:
    """A row that holds an error against its limit."""
    ratio = round(limit / max(error, limit / 1e3), 3) if error == error else 0.0
    return {"name": name, "unit": "error", "ours": error, "peer": None, "ratio": ratio, "goal": 1.0}


def away(ours: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """The largest relative distance of a tensor from the true one."""
    pairs = zip(ours, true, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)) for a, b in pairs)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def attention(where: Where) -> Iterator[Row]:
    """Every kind of mask, output and gradients. The CPU has no backward pass of FlexAttention: output only."""
    length, window, (heads, groups, dim) = (300, 90, (4, 2, 16)) if where.small else (1500, 400, (8, 2, 128))
    index = torch.arange(length, device=where.device, dtype=torch.int32)
    documents = torch.stack([index // (length // 4), index // 130])
    padded = documents.clone()
    padded[1, length // 2 :] = -1
    for kind, ids in {"plain": None, "documents": documents, "padding": padded}.items():
        for wide in (None, window):
            for dtype in (torch.float32,) if where.small else ROUNDING:
                sizes = [(2, heads, length, dim), (2, groups, length, dim), (2, groups, length, dim)]
                inputs = [torch.randn(size, device=where.device).to(dtype) for size in sizes]
                upstream = torch.randn(sizes[0], device=where.device).to(dtype)
                mask = None if ids is None and wide is None else block_mask(length, wide, ids, where.device)
                with_grad = mask is None or not where.small

                def ours(inputs: list[Tensor], mask: Any = mask, wide: int | None = wide) -> Tensor:
                    query, key, value = inputs
                    return attend(query, key, value, None, wide) if mask is None else flex(query, key, value, mask)

                def true(inputs: list[Tensor], wide: int | None = wide, ids: Tensor | None = ids) -> Tensor:
                    return written_out(inputs, wide, ids)

                found = [with_gradients(ours, inputs, upstream, with_grad)]
                found.append(with_gradients(true, [one.double() for one in inputs], upstream.double(), with_grad))
                name = f"attention/{kind}{', window' if wide else ''} {short(dtype)}"
                yield within(name, away(*found), ROUNDING[dtype])


def written_out(inputs: list[Tensor], window: int | None, ids: Tensor | None) -> Tensor:
    query, key, value = inputs
    position = torch.arange(query.shape[2], device=query.device)
    distance = position.unsqueeze(1) - position
    seen = (distance >= 0) & (distance < (window or len(position)))
    if ids is not None:
        seen = seen & (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ value


def with_gradients(
    work: Callable[[list[Tensor]], Tensor], inputs: list[Tensor], upstream: Tensor, wanted: bool = True
) -> list[Tensor]:
    """What `work` makes of `inputs`, then the gradients of those."""
    held = [one.detach().requires_grad_(wanted) for one in inputs]
    out = work(held)
    return [out.detach(), *(torch.autograd.grad(out, held, upstream) if wanted else ())]


def experts(where: Where) -> Iterator[Row]:
    """Sorted rows and grouped products, some experts without a token, against a loop in float64."""
    count, width, inner, tokens = (8, 32, 24, 60) if where.small else (32, 512, 256, 3000)
    layer = Experts(count, width, inner).to(where.device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=width**-0.5)
    chosen = torch.rand(tokens, count - 3, device=where.device).topk(4).indices
    weights = torch.rand(tokens, 4, device=where.device)
    for dtype in ROUNDING:
        x = torch.randn(tokens, width, device=where.device).to(dtype)
        given = [x, layer.gate_up_proj.to(dtype), layer.down_proj.to(dtype), weights]
        upstream = torch.randn_like(x)

        def ours(inputs: list[Tensor]) -> Tensor:
            values = {"gate_up_proj": inputs[1], "down_proj": inputs[2]}
            return torch.func.functional_call(layer, values, (inputs[0], chosen, inputs[3]))

        def true(inputs: list[Tensor]) -> Tensor:
            x, gate_up, down, weight = inputs
            out = torch.zeros_like(x)
            for expert in range(count):
                token, place = (chosen == expert).nonzero(as_tuple=True)
                gate, up = (x[token] @ gate_up[expert].mT).chunk(2, -1)
                out = out.index_add(0, token, F.silu(gate) * up @ down[expert].mT * weight[token, place, None])
            return out

        found = with_gradients(ours, given, upstream)
        exact = with_gradients(true, [one.double() for one in given], upstream.double())
        yield within(f"experts/{short(dtype)}", away(found, exact), ROUNDING[dtype])


def loss(where: Where) -> Iterator[Row]:
    """The chunked cross-entropy, compiled or not, with positions left out, against the plain one in float64."""
    tokens, width, vocabulary, chunk = (100, 16, 64, 32) if where.small else (6000, 512, 32000, 1024)
    targets = torch.randint(0, vocabulary, (tokens,), device=where.device)
    targets[::7] = -1
    for dtype in ROUNDING:
        for compiled in (False,) if where.small else (False, True):
            hidden = torch.randn(tokens, width, device=where.device).to(dtype).requires_grad_()
            weight = (torch.randn(vocabulary, width, device=where.device) / width**0.5).to(dtype).requires_grad_()
            normalizer = (targets >= 0).sum()
            mean, _, _ = chunked_cross_entropy(
                hidden, weight, targets, chunk=chunk, z_loss=1e-3, normalizer=normalizer, compiled=compiled
            )
            wide = [one.detach().double().requires_grad_() for one in (hidden, weight)]
            logits = wide[0] @ wide[1].mT
            square = (logits.logsumexp(-1).square() * (targets >= 0)).sum() / normalizer
            true = F.cross_entropy(logits, targets, ignore_index=-1) + 1e-3 * square
            found = [mean.detach(), *torch.autograd.grad(mean, (hidden, weight))]
            exact = [true.detach(), *torch.autograd.grad(true, wide)]
            name = f"loss/{short(dtype)}{', compiled' if compiled else ''}"
            yield within(name, away(found, exact), ROUNDING[dtype])


def muon(where: Where) -> Iterator[Row]:
    """Newton-Schulz in bf16 against the orthogonal factor by singular values in float64."""
    sizes = {"wide": (32, 96), "stack": (3, 32, 48)}
    if not where.small:
        sizes = {"wide": (1024, 3072), "tall": (3072, 1024), "stack": (16, 256, 1024)}
    for name, size in sizes.items():
        matrices = torch.randn(size, device=where.device)
        left, _, right = torch.linalg.svd(matrices.double(), full_matrices=False)
        yield within(f"muon/{name}", away([orthogonalize(matrices)], [left @ right]), 5e-2)


def a_batch(device: torch.device, rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens in documents, the last row half padding."""
    tokens = torch.randint(0, vocabulary, (rows, length))
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1)
    ids = (torch.arange(length, dtype=torch.int32) // (length // 3)).repeat(rows, 1)
    ids[-1, length // 2 :] = -1
    targets[-1, length // 2 :] = -1
    return Batch(tokens, targets, ids).to(device)


def a_model(where: Where) -> Afmoe:
    """A few layers of every kind. Each token selects every expert: rounding must not send it to another one."""
    sizes: dict[str, Any] = {"hidden_size": 32, "head_dim": 16, "intermediate_size": 48, "moe_intermediate_size": 16}
    if not where.small:
        sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 768, "moe_intermediate_size": 128}
    config = ModelConfig(
        vocab_size=512, num_hidden_layers=4, num_experts=8, num_experts_per_tok=8, sliding_window=100, **sizes
    )
    model = Afmoe(config)
    init_model(model, seed=0)
    return model.train()


def step(where: Where) -> Iterator[Row]:
    """Loss and gradients of a whole step against the CPU in fp32; how often it waits; state saved and restored."""
    model, exact = a_model(where), a_model(where)
    batch = a_batch(torch.device("cpu"), 4, 300, 512)
    true_loss, true = gradients(exact, [batch])
    kinds = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
    for dtype, compiled in kinds[:2] if where.small else kinds:
        fast = copy.deepcopy(model).to(where.device)
        fast.compute_dtype = dtype
        if compiled:
            compile_blocks(fast)
        value, found = gradients(fast, [batch.to(where.device)])
        name = f"step/{short(dtype)}{', compiled' if compiled else ''}"
        yield within(f"{name} loss", abs(value / true_loss - 1), ROUNDING[dtype] / 2)
        together = [torch.cat([one[key].flatten() for key in true]) for one in (found, true)]
        yield within(f"{name} gradients", away(together[:1], together[1:]), 3 * ROUNDING[dtype])
    model.to(where.device).compute_dtype = torch.bfloat16
    optimizers = build_optimizers(model, OptimConfig())
    batches, config = [batch.to(where.device)] * 2, TrainConfig(batch_sequences=8, micro_batch_sequences=4)
    train_step(model, optimizers, batches, config, 1.0, LR_FACTOR)
    optimizers.load_state_tensors({name: one.cpu() for name, one in optimizers.state_tensors().items()})
    waits = waited(lambda: train_step(model, optimizers, batches, config, 1.0, LR_FACTOR), where.device)
    ratio = 1 / max(waits, 1)
    yield {"name": "step/waits", "unit": "waits", "ours": waits, "peer": None, "ratio": ratio, "goal": 1.0}


def gradients(model: Afmoe, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    config = TrainConfig(sequence_length=300, batch_sequences=4, micro_batch_sequences=4, loss_chunk_tokens=256)
    value = train_step(model, build_optimizers(model, OptimConfig()), batches, config, None, 0.0).loss
    return value, {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}


def waited(work: Callable[[], object], device: torch.device) -> int:
    """How often `work` makes the host wait for the device, as torch reports it; prints where."""
    if device.type == "cpu":
        work()
        return 0
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    found = [one for one in said if "synchroniz" in str(one.message)]
    for one in found:
        print(f"waits at {one.filename}:{one.lineno}", flush=True)
    return len(found)


@torch.no_grad()
def generation(where: Where) -> Iterator[Row]:
    """Greedy tokens from the cache in fp32 against the CPU's largest logits without a cache."""
    model = a_model(where).eval()
    prompts = [torch.randint(0, 512, (length,)).tolist() for length in (7, 130, 250)]
    new = 4 if where.small else 16
    fast = copy.deepcopy(model).to(where.device)
    texts: list[list[int]] = [[] for _ in prompts]
    for fresh in generate(fast, prompts, new):
        for row, token in fresh.items():
            texts[row].append(token)
    with uncompiled():
        wrong = 0
        for prompt, text in zip(prompts, texts, strict=True):
            logits = model(torch.tensor([[*prompt, *text[:-1]]]))[0, len(prompt) - 1 :]
            chosen = logits.gather(1, torch.tensor(text).unsqueeze(1)).squeeze(1)
            wrong += int((chosen < logits.amax(1) - 1e-3).sum()) + abs(new - len(text))
    yield within("generate/wrong tokens", float(wrong), 0.5)


def moe(where: Where) -> Iterator[Row]:
    """A slice of Trinity Nano. Its vocabulary is as much smaller as its depth, so that the head keeps its share.

    Ours is a whole step with Muon and fp32 weights; transformers has bf16 weights and AdamW, which is less work.
    """
    config = ModelConfig(preset="nano", num_hidden_layers=8, vocab_size=32768)
    rows, length, micro = (1, 64, 2) if where.small else (4, 4096, 4)
    if where.small:
        config = a_model(where).config
    with where.device:
        model = Afmoe(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 / config.hidden_size**0.5)
    with tempfile.TemporaryDirectory() as folder:
        write_config(config, Path(folder), "bfloat16", None)
        yield from race("moe", 0.45, where, model, OptimConfig(), peer_maker(folder, where), (rows, length, micro))


def dense(where: Where) -> Iterator[Row]:
    """The shape of Llama 3.2 1B as a model of transformers in our trainer, AdamW on both sides."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rows, length, micro = (1, 64, 2) if where.small else (2, 4096, 4)
    if not where.small:
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True, max_position_embeddings=length)
    with where.device:
        model = CausalModel(LlamaForCausalLM(config))
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        optim = OptimConfig(matrices="adamw")
        yield from race("dense", 0.55, where, model, optim, peer_maker(folder, where), (rows, length, micro))


def peer_maker(folder: str, where: Where) -> Callable[[Afmoe | CausalModel], Any]:
    """transformers' model of the config in `folder` with our weights, bf16, grouped products, SDPA."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)

    def make(model: Afmoe | CausalModel) -> Any:
        options = {"experts_implementation": "grouped_mm"} if isinstance(model, Afmoe) else {}
        with where.device:
            peer = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa", **options)
        absent = peer.load_state_dict(model.state_dict(), strict=False).missing_keys
        assert not [name for name in absent if name != "lm_head.weight" or not config.tie_word_embeddings], absent
        return peer.train()

    return make


def race(
    name: str,
    goal: float,
    where: Where,
    model: Afmoe | CausalModel,
    optim: OptimConfig,
    make_peer: Callable[[Afmoe | CausalModel], Any],
    shape: tuple[int, int, int],
) -> Iterator[Row]:
    """Rows of steps of `shape` (rows, length, micro-batches): ours, then beside each arm of the peer."""
    rows, length, micro = shape
    tokens = torch.randint(0, model.output_weight.shape[0], (micro, rows, length), device=where.device)
    peer = make_peer(model)
    seconds, first = our_step(model, optim, tokens, where)
    card = torch.cuda.get_device_name() if where.device.type == "cuda" else "cpu"
    measured = peak_flops(where.device, torch.bfloat16, torch.get_num_threads())
    nominal = next((value for key, value in NOMINAL.items() if key in card), measured)
    print(f"{name}: {card}, bf16 peak {nominal / 1e12:.0f} nominal, {measured / 1e12:.0f} measured", flush=True)
    speed = tokens.numel() / seconds
    for row, peak in ((f"mfu/{name}", nominal), (f"mfu_measured/{name}", measured)):
        share = round(speed * training_flops(model, length) / peak, 4)
        yield {"name": row, "unit": "of peak", "ours": share, "peer": None, "ratio": share, "goal": goal}
    del model
    for arm in ("eager",) if where.small else ("eager", "compiled"):
        seconds, value = peer_step(peer, torch.compile(peer) if arm == "compiled" else peer, tokens, where)
        print(f"{name}: losses {first:.4f} and {value:.4f}", flush=True)
        assert abs(first - value) < 0.05, "the losses differ: this is not the same work"
        theirs = tokens.numel() / seconds
        row = {"name": f"tokens/{name}, peer {arm}", "unit": "tokens/s", "ours": speed, "peer": theirs}
        yield row | {"ratio": round(speed / theirs, 3), "goal": 1.0}


def our_step(model: Afmoe | CausalModel, optim: OptimConfig, tokens: Tensor, where: Where) -> tuple[float, float]:
    """Median seconds of a step as a run makes it, and the loss of the first."""
    micro, rows, length = tokens.shape
    model.train()
    model.compute_dtype = torch.bfloat16
    if isinstance(model, Afmoe) and not where.small:
        compile_blocks(model)
    config = TrainConfig(
        sequence_length=length,
        batch_sequences=micro * rows,
        micro_batch_sequences=rows,
        loss_chunk_tokens=min(rows * length, 4096),
    )
    optimizers = build_optimizers(model, optim)
    batches = [Batch(one, torch.cat([one[:, 1:], torch.full_like(one[:, :1], -1)], 1), None) for one in tokens]
    first = train_step(model, optimizers, batches, config, 1.0, 0.0).loss
    return timed(lambda: train_step(model, optimizers, batches, config, 1.0, LR_FACTOR), where), first


def peer_step(peer: Any, forward: Any, tokens: Tensor, where: Where) -> tuple[float, float]:
    """Median seconds of transformers' step with fused AdamW, and the loss before the first."""
    adamw = torch.optim.AdamW(peer.parameters(), lr=1e-6, fused=True)

    def one_step() -> float:
        total = torch.zeros((), device=where.device)
        for batch in tokens:
            value = forward(input_ids=batch, labels=batch, use_cache=False).loss / len(tokens)
            value.backward()
            total += value.detach()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(total)

    first = one_step()
    return timed(one_step, where), first


def timed(work: Callable[[], object], where: Where) -> float:
    """Median seconds of `work`, after one to warm up."""
    found: list[float] = []
    for _ in range(2 if where.small else 6):
        began = time.perf_counter()
        work()
        if where.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])
