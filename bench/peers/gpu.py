"""What `kernel-report --time` and the step `vit_large` compute, in PyTorch on the same card: the peers of the kernels.

    python bench/peers/gpu.py --device cuda              every op and the step, one JSON line each
    python bench/peers/gpu.py --device cpu --tiny        the same code at shapes that take no time
    python bench/peers/gpu.py --only linear attention    ops whose name contains one of these words
    python bench/peers/gpu.py --only ceilings            what the card reaches at most: copies, and square products

Each op runs eager and compiled, in bf16 with f32 accumulation, at the engine's large shapes; attention once with each
backend that scaled_dot_product_attention has for it. On CUDA a call is timed by events around it, after a buffer larger
than the second-level cache has been overwritten; the numbers are random normals, the same for all. Directions: forward;
backward, everything autograd computes from the cotangent; both, where a step needs the two as one.
Shapes: N rows, C width, B batch, T tokens, H heads, Hk key/value heads, D head dim, F MLP width, V vocabulary.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from measure import emit

# Larger than the second-level cache of any GPU of today, bytes.
CACHE_BYTES = 256 * 1024 * 1024


# What each method of `Peers` times.
OPS = {
    "ceilings": ["ceilings"], "linear": ["linear", "linear_gelu"], "attention": ["attention"],
    "norms": ["layer_norm", "rms_norm"], "swiglu": ["swiglu"],
    "losses": ["linear_cross_entropy", "contrastive_loss"], "adamw": ["adamw"],
}  # fmt: skip


class Sizes(NamedTuple):
    """As `Size::Large` and `Size::Tiny` of tools/kernels/examples.rs."""

    images: int
    tokens: int
    width: int
    heads: int
    mlp: int
    batch: int
    text: int
    language: int
    language_mlp: int
    vocabulary: int
    query_heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    shared: int
    parameters: int
    step: dict


LARGE = Sizes(
    256, 257, 1024, 16, 4096, 4, 2048, 1536, 8960, 151_936, 12, 2, 128, 32_768, 768, 305_135_616,
    dict(batch=256, image=224, patch=14, width=1024, layers=24, heads=16, text_width=768, text_layers=12,
         text_heads=12, context=77, vocabulary=49_408, shared=768, parameters=427_616_513),
)  # fmt: skip
TINY = Sizes(
    2, 5, 64, 1, 96, 2, 6, 48, 40, 40, 2, 1, 32, 9, 32, 960,
    dict(batch=4, image=28, patch=14, width=64, layers=2, heads=1, text_width=64, text_layers=2,
         text_heads=1, context=7, vocabulary=40, shared=32, parameters=None),
)  # fmt: skip


class Clock:
    """Times calls on one device."""

    def __init__(self, device: str, warm_up: int, repeats: int):
        self.device, self.warm_up, self.repeats = device, warm_up, repeats
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None

    def once(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call, with nothing of its data in the second-level cache."""
        if self.cache is None:
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        self.cache.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def measure(self, work: Callable[[], object]) -> dict:
        """Median and extremes, ms."""
        for _ in range(self.warm_up):
            work()
        times = [self.once(work) for _ in range(self.repeats)]
        return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "runs": len(times)}


class Work(NamedTuple):
    """One thing to time: flops (a multiply-add counts two) and the bytes it must touch at least once."""

    op: str
    case: str
    direction: str
    form: str
    run: Callable[[], object]
    flop: float
    bytes: float


def bytes_of(*tensors: Tensor) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


class Peers:
    """The ops on one device."""

    def __init__(self, device: str, sizes: Sizes, compiles: bool):
        self.device, self.sizes = device, sizes
        self.forms = [("eager", lambda f: f)] + ([("compiled", torch.compile)] if compiles else [])

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def both_ways(
        self, op: str, case: str, flop: tuple[float, float], inputs: list[Tensor], function: Callable[..., Tensor],
        forms: list | None = None,
    ) -> Iterator[Work]:  # fmt: skip
        """The forward without a graph, and the backward alone on a graph that is kept."""
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        for form, wrap in self.forms if forms is None else forms:
            wrapped = wrap(function)

            def forward(wrapped=wrapped) -> None:
                with torch.no_grad():
                    wrapped(*leaves)

            output = wrapped(*leaves)
            cotangent = torch.randn_like(output)

            def backward(output=output, cotangent=cotangent) -> None:
                torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

            moved = bytes_of(*inputs, output)
            yield Work(op, case, "forward", form, forward, flop[0], moved)
            yield Work(op, case, "backward", form, backward, flop[1], moved + bytes_of(*inputs))

    def ceilings(self) -> Iterator[Work]:
        """What the card reaches at most: a copy, a sum of a large vector, and square products in bf16 by cuBLAS."""
        count = 2 * self.sizes.parameters
        x, y = self.random(count), self.random(count)
        yield Work("ceilings", f"copy of {count} bf16", "forward", "eager", lambda: y.copy_(x), 0.0, bytes_of(x, y))
        yield Work("ceilings", f"sum of {count} bf16", "forward", "eager", x.sum, float(count), bytes_of(x))
        for side in (self.sizes.width * 4, self.sizes.width * 8):
            a, b = self.random(side, side), self.random(side, side)
            yield Work(
                "ceilings", f"[{side},{side}]x[{side},{side}]", "forward", "eager", lambda a=a, b=b: a @ b,
                2.0 * side**3, 3 * bytes_of(a),
            )  # fmt: skip

    def linear(self) -> Iterator[Work]:
        """Against cuBLAS: PyTorch's product. `dx` and `dw` are the two products of the backward."""
        s = self.sizes
        rows = s.images * s.tokens
        for n, k, m, bias in [
            (rows, s.width, 3 * s.width, True), (rows, s.width, s.mlp, True), (rows, s.mlp, s.width, True),
            (s.batch * s.text, s.language, 2 * s.language_mlp, False),
        ]:  # fmt: skip
            x, weight, dy = self.random(n, k), self.random(m, k), self.random(n, m)
            b = self.random(m) if bias else None
            case, flop, moved = f"[{n},{k}]x[{m},{k}]", 2.0 * n * k * m, bytes_of(x, weight, dy)
            yield Work("linear", case, "forward", "eager", lambda: F.linear(x, weight, b), flop, moved)
            yield Work("linear", case, "dx", "eager", lambda: dy @ weight, flop, moved)
            yield Work("linear", case, "dw", "eager", lambda: dy.T @ x, flop, moved)
        n, k, m = rows, s.width, s.mlp
        inputs = [self.random(n, k), self.random(m, k), self.random(m)]
        flop = 2.0 * n * k * m
        yield from self.both_ways(
            "linear_gelu", f"[{n},{k}]x[{m},{k}]", (flop, 2 * flop), inputs, lambda x, w, b: F.gelu(F.linear(x, w, b))
        )

    def attention(self) -> Iterator[Work]:
        """From the fused product's [B,T,(H+2Hk)D] to [B,T,HD], with every backend there is for the shape."""
        s = self.sizes
        for name, batch, tokens, heads, kv_heads, dim, causal in [
            ("full", s.images, s.tokens, s.heads, s.heads, 64, False),
            ("causal", s.batch, s.text, s.query_heads, s.kv_heads, s.head_dim, True),
        ]:
            case = f"{name} B{batch} T{tokens} H{heads}/{kv_heads} D{dim}"
            pairs = tokens * (tokens + 1) / 2 if causal else float(tokens) ** 2
            flop = 4.0 * batch * heads * pairs * dim
            qkv = self.random(batch, tokens, (heads + 2 * kv_heads) * dim)

            def function(qkv: Tensor, heads=heads, kv_heads=kv_heads, dim=dim, causal=causal) -> Tensor:
                split = qkv.unflatten(-1, (-1, dim)).split([heads, kv_heads, kv_heads], dim=2)
                query, key, value = (t.transpose(1, 2) for t in split)
                y = F.scaled_dot_product_attention(
                    query, key, value, is_causal=causal, enable_gqa=heads != kv_heads
                )  # fmt: skip
                return y.transpose(1, 2).flatten(2)

            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

                def chosen(qkv: Tensor, backend=backend, function=function) -> Tensor:
                    with sdpa_kernel(backend):
                        return function(qkv)

                try:
                    yield from self.both_ways(
                        "attention", case, (flop, 2.5 * flop), [qkv], chosen, [(backend.name.lower(), lambda f: f)]
                    )
                except RuntimeError as problem:
                    reason = str(problem).splitlines()[0]
                    emit({"kind": "refused", "example": "attention", "shape": case, "form": backend.name, "reason": reason})
            if self.device == "cpu":
                yield from self.both_ways("attention", case, (flop, 2.5 * flop), [qkv], function, self.forms[:1])

    def norms(self) -> Iterator[Work]:
        s = self.sizes
        n, c = s.images * s.tokens, s.width
        x, weight, bias = self.random(n, c), self.random(c), self.random(c)
        yield from self.both_ways(
            "layer_norm", f"[{n},{c}]", (8.0 * n * c, 15.0 * n * c), [x, weight, bias],
            lambda x, w, b: F.layer_norm(x, (c,), w, b, 1e-6),
        )  # fmt: skip
        m, d = s.batch * s.text, s.language
        x, weight = self.random(m, d), self.random(d)
        yield from self.both_ways(
            "rms_norm", f"[{m},{d}]", (4.0 * m * d, 11.0 * m * d), [x, weight], lambda x, w: F.rms_norm(x, (d,), w, 1e-6)
        )

    def swiglu(self) -> Iterator[Work]:
        s = self.sizes
        n, f = s.batch * s.text, s.language_mlp

        def function(gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return F.silu(gate) * up

        yield from self.both_ways(
            "swiglu", f"[{n},{2 * f}]", (8.0 * n * f, 12.0 * n * f), [self.random(n, 2 * f)], function
        )

    def losses(self) -> Iterator[Work]:
        """Forward and backward in one, as a step needs them, the products inside."""
        s = self.sizes
        n, c, v = s.batch * s.text, s.language, s.vocabulary
        hidden, table = (self.random(*shape).requires_grad_() for shape in [(n, c), (v, c)])
        targets = torch.randint(v, (n,), device=self.device)
        flop = 6.0 * n * c * v
        for form, wrap in self.forms:
            loss = wrap(lambda hidden, table: F.cross_entropy(F.linear(hidden, table).float(), targets))

            def run(loss=loss) -> None:
                torch.autograd.grad(loss(hidden, table), [hidden, table])

            moved = 2 * bytes_of(hidden, table)
            yield Work("linear_cross_entropy", f"[{n},{c}] V{v}", "both", form, run, flop, moved)
        n, e = s.pairs, s.shared
        image, text = (F.normalize(self.random(n, e), dim=-1).requires_grad_() for _ in range(2))
        scale = torch.full((1,), 2.6592, device=self.device, requires_grad=True)
        labels = torch.arange(n, device=self.device)

        def infonce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            logits = (image @ text.T).float() * scale.exp()
            return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

        for form, wrap in self.forms:
            loss = wrap(infonce)

            def run(loss=loss) -> None:
                torch.autograd.grad(loss(image, text, scale), [image, text, scale])

            yield Work("contrastive_loss", f"N{n} E{e}", "both", form, run, 6.0 * n * n * e, 2 * bytes_of(image, text))

    def adamw(self) -> Iterator[Work]:
        """The gradient norm, the clip and the fused update of f32 masters, in matrices of [1024,1024] or one small one."""
        count = self.sizes.parameters
        side = min(1024, math.isqrt(count))
        parameters = [
            nn.Parameter(self.random(side, side, dtype=torch.float32)) for _ in range(max(1, count // side**2))
        ]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True)
        held = sum(parameter.numel() for parameter in parameters)

        def run() -> None:
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimizer.step()

        yield Work("adamw", f"{held} parameters", "update", "fused", run, 14.0 * held, 32.0 * held)


class Block(nn.Module):
    """A pre-norm block, [B,T,C] -> [B,T,C]."""

    def __init__(self, width: int, heads: int, is_causal: bool):
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Contrastive(nn.Module):
    """Both towers and InfoNCE: the model of bench/vit_large.toml."""

    def __init__(self, step: dict):
        super().__init__()
        width, text_width = step["width"], step["text_width"]
        patches = (step["image"] // step["patch"]) ** 2
        self.patch_embed = nn.Conv2d(3, width, step["patch"], stride=step["patch"], bias=False)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(0.02 * torch.randn(patches + 1, width))
        self.pre_norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, step["heads"], False) for _ in range(step["layers"])))
        self.embedding = nn.Embedding(step["vocabulary"], text_width)
        self.text_position = nn.Parameter(0.02 * torch.randn(step["context"], text_width))
        self.text_blocks = nn.Sequential(
            *(Block(text_width, step["text_heads"], True) for _ in range(step["text_layers"]))
        )
        self.text_norm = nn.LayerNorm(text_width)
        self.image_projection = nn.Linear(width, step["shared"], bias=False)
        self.text_projection = nn.Linear(text_width, step["shared"], bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def forward(self, images: Tensor, captions: Tensor, ends: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.position
        x = self.final_norm(self.blocks(self.pre_norm(x)))
        image = F.normalize(self.image_projection(x[:, 1:].mean(1)), dim=-1)
        y = self.text_norm(self.text_blocks(self.embedding(captions) + self.text_position))
        text = F.normalize(self.text_projection(y[torch.arange(len(y), device=y.device), ends]), dim=-1)
        logits = (image @ text.T).float() * self.log_scale.exp()
        labels = torch.arange(len(image), device=image.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def step_rows(device: str, sizes: Sizes, clock: Clock, compiles: bool) -> None:
    """The whole step: forward, loss, backward, AdamW; autocast to bf16 over f32 masters."""
    step = sizes.step
    for form in ["eager"] + (["compiled"] if compiles else []):
        torch.manual_seed(0)
        model = Contrastive(step).to(device)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert step["parameters"] in (None, count), f"{count:,} parameters, wanted {step['parameters']:,}"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
        images = torch.randn(step["batch"], 3, step["image"], step["image"], device=device)
        captions = torch.randint(step["vocabulary"], (step["batch"], step["context"]), device=device)
        ends = torch.randint(step["context"], (step["batch"],), device=device)
        forward = torch.compile(model) if form == "compiled" else model

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = forward(images, captions, ends)
            loss.backward()
            optimizer.step()

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            result = clock.measure(run)
        except torch.OutOfMemoryError as problem:
            emit({"kind": "refused", "example": "vit_large", "form": form, "reason": str(problem).splitlines()[0]})
            continue
        peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
        emit(
            {
                "kind": "peer_step", "peer": f"pytorch {torch.__version__}", "step": "vit_large", "form": form,
                "precision": "bf16", **result, "images_per_s": step["batch"] / result["median_ms"] * 1e3,
                "parameters": count, "peak_memory_mib": peak,
            }  # fmt: skip
        )
        del model, optimizer, forward
        if device == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time")
    parser.add_argument("--only", nargs="*", default=[], help="words of the ops' names; `step` for the whole step")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: this PyTorch finds no CUDA device", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    sizes = TINY if arguments.tiny else LARGE
    compiles = not arguments.no_compile and not arguments.tiny
    clock = Clock(arguments.device, 2 if arguments.tiny else 5, 2 if arguments.tiny else arguments.repeats)
    peers = Peers(arguments.device, sizes, compiles)

    def is_wanted(name: str) -> bool:
        return not arguments.only or any(word in name for word in arguments.only)

    for works in (peers.ceilings, peers.linear, peers.attention, peers.norms, peers.swiglu, peers.losses, peers.adamw):
        # Making the tensors of ops that nobody asked for takes time too.
        if not any(map(is_wanted, OPS[works.__name__])):
            continue
        try:
            for work in works():
                if not is_wanted(work.op):
                    continue
                result = clock.measure(work.run)
                seconds = result["median_ms"] / 1e3
                emit(
                    {
                        "kind": "peer", "peer": f"pytorch {torch.__version__}", "op": work.op, "shape": work.case,
                        "direction": work.direction, "form": work.form, "precision": "bf16", **result,
                        "gflop_per_s": work.flop / seconds / 1e9, "gb_per_s": work.bytes / seconds / 1e9,
                    }  # fmt: skip
                )
        except torch.OutOfMemoryError as problem:
            emit({"kind": "refused", "example": works.__name__, "reason": str(problem).splitlines()[0]})
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    if is_wanted("step"):
        step_rows(arguments.device, sizes, clock, compiles)
    return 0


if __name__ == "__main__":
    sys.exit(main())
