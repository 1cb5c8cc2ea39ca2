"""The ops of the two lead steps in PyTorch, each on its own at the step's shapes; f32, eager, two threads.

    python bench/peers/ops.py                    every op, one JSON line each
    python bench/peers/ops.py attention linear   those whose name contains one of these words

A line: op, case, direction, median, extremes, GFLOP/s by the op's own count and GB/s of the bytes it must touch at
least once. The names are the engine's. Directions: forward; backward, everything it computes from the cotangent;
dx and dw for the two products of linear's backward; both, where the library offers only the whole.
Shapes: N rows, C width, B batch, T tokens, H heads, Hk key/value heads, D head dim, F MLP width, V vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import emit, measure_calls, run_child, summary


class Work(NamedTuple):
    """One thing to time: `gflop` counts a multiply-add twice, `tensors` are those it reads or writes at least once."""

    op: str
    case: str
    direction: str
    run: Callable[[], object]
    gflop: float
    tensors: list[Tensor]


def forward_and_backward(
    op: str, case: str, gflop: tuple[float, float], inputs: list[Tensor], function: Callable[..., Tensor]
) -> Iterator[Work]:
    """The forward without a graph, and the backward alone on a graph that is kept."""
    with torch.no_grad():
        shape = function(*inputs).shape
    leaves = [tensor.requires_grad_() for tensor in inputs]
    output = function(*leaves)
    cotangent = torch.randn(shape)

    def forward() -> None:
        with torch.no_grad():
            function(*leaves)

    def backward() -> None:
        torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    yield Work(op, case, "forward", forward, gflop[0], [*inputs, output])
    yield Work(op, case, "backward", backward, gflop[1], [*inputs, cotangent, *inputs])


def linear() -> Iterator[Work]:
    """Rows of both towers (8192 and 4096) and of the decoder (4096); bias where the step has one."""
    for case, rows, inner, outer, has_bias in [
        ("vision qkv", 8192, 192, 576, True), ("vision out", 8192, 192, 192, True),
        ("vision fc1", 8192, 192, 768, True), ("vision fc2", 8192, 768, 192, True),
        ("decoder qkv", 4096, 256, 512, True), ("decoder out", 4096, 256, 256, False),
        ("decoder gate_up", 4096, 256, 1536, False), ("decoder down", 4096, 768, 256, False),
    ]:  # fmt: skip
        x, weight, dy = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)
        bias = torch.randn(outer) if has_bias else None
        gflop = 2e-9 * rows * inner * outer
        case = f"{case} [{rows},{inner}]x[{outer},{inner}]T"
        yield Work("linear", case, "forward", lambda: F.linear(x, weight, bias), gflop, [x, weight, dy])
        yield Work("linear", case, "dx", lambda: dy @ weight, gflop, [dy, weight, x])
        if has_bias:
            yield Work("linear", case, "dw", lambda: (dy.T @ x, dy.sum(0)), gflop, [dy, x, weight])
        else:
            yield Work("linear", case, "dw", lambda: dy.T @ x, gflop, [dy, x, weight])


def patch_embed() -> Iterator[Work]:
    image, weight, bias = torch.randn(128, 3, 64, 64), torch.randn(192, 3, 8, 8), torch.randn(192)
    gflop = 2e-9 * 128 * 64 * 192 * 192

    def function(weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(image, weight, bias, stride=8).flatten(2).transpose(1, 2)

    case = "[128,3,64,64] patch 8, width 192"
    yield from forward_and_backward("patch_embed", case, (gflop, gflop), [weight, bias], function)


def norms() -> Iterator[Work]:
    x, weight, bias = torch.randn(8192, 192), torch.randn(192), torch.randn(192)
    yield from forward_and_backward(
        "layer_norm", "vision [8192,192]", (8e-9 * x.numel(), 14e-9 * x.numel()), [x, weight, bias],
        lambda x, weight, bias: F.layer_norm(x, (192,), weight, bias, 1e-6),
    )  # fmt: skip
    x, weight = torch.randn(4096, 256), torch.randn(256)
    yield from forward_and_backward(
        "rms_norm", "decoder [4096,256]", (4e-9 * x.numel(), 11e-9 * x.numel()), [x, weight],
        lambda x, weight: F.rms_norm(x, (256,), weight, 1e-6),
    )  # fmt: skip


def attention() -> Iterator[Work]:
    """From the fused product's [B,T,(H+2Hk)D] to [B,T,HD], so that a library's transposes are in the time."""
    for case, batch, tokens, heads, kv_heads, is_causal in [
        ("vision full B128 T64 H3 D64", 128, 64, 3, 3, False),
        ("text causal B128 T32 H3 D64", 128, 32, 3, 3, True),
        ("decoder causal B64 T64 H4 Hk2 D64", 64, 64, 4, 2, True),
    ]:
        qkv = torch.randn(batch, tokens, (heads + 2 * kv_heads) * 64)
        gflop = 4e-9 * batch * heads * tokens * tokens * 64

        def function(qkv: Tensor, heads=heads, kv_heads=kv_heads, is_causal=is_causal) -> Tensor:
            split = qkv.unflatten(-1, (-1, 64)).split([heads, kv_heads, kv_heads], dim=2)
            query, key, value = (t.transpose(1, 2) for t in split)
            is_grouped = heads != kv_heads
            y = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=is_grouped)
            return y.transpose(1, 2).flatten(2)

        yield from forward_and_backward("attention", case, (gflop, 2.5 * gflop), [qkv], function)


def rope() -> Iterator[Work]:
    """Queries and keys of the decoder together, [B,T,H+Hk,D]."""
    angles = torch.arange(64)[:, None] * 1e6 ** (-torch.arange(0, 64, 2) / 64)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    cos, sin = angles.cos(), angles.sin()

    def function(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    x = torch.randn(64, 64, 6, 64)
    yield from forward_and_backward("rope", "decoder [64,64,6,64]", (3e-9 * x.numel(), 3e-9 * x.numel()), [x], function)


def activations() -> Iterator[Work]:
    x = torch.randn(8192, 768)
    yield from forward_and_backward("gelu", "vision [8192,768]", (10e-9 * x.numel(), 15e-9 * x.numel()), [x], F.gelu)
    gate_up = torch.randn(4096, 1536)

    def function(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    work = 4096 * 768 * 1e-9
    yield from forward_and_backward("swiglu", "decoder [4096,1536]", (6 * work, 12 * work), [gate_up], function)


def pixel_unshuffle() -> Iterator[Work]:
    def function(x: Tensor) -> Tensor:
        return x.view(64, 4, 2, 4, 2, 192).transpose(2, 3).reshape(64, 16, 768)

    yield from forward_and_backward(
        "pixel_unshuffle", "[64,8,8,192]", (0.0, 0.0), [torch.randn(64, 8, 8, 192)], function
    )


def losses() -> Iterator[Work]:
    """Forward and backward in one, as a step needs them; the product with the table is inside."""
    hidden, table = torch.randn(3072, 256, requires_grad=True), torch.randn(512, 256, requires_grad=True)
    targets = torch.randint(512, (3072,))
    yield Work(
        "linear_cross_entropy", "[3072,256] vocabulary 512", "both",
        lambda: torch.autograd.grad(F.cross_entropy(F.linear(hidden, table), targets), [hidden, table]),
        6e-9 * 3072 * 256 * 512, [hidden, table, hidden, table],
    )  # fmt: skip
    image, text = torch.randn(128, 128, requires_grad=True), torch.randn(128, 128, requires_grad=True)
    scale = torch.full((1,), 2.6592, requires_grad=True)
    labels = torch.arange(128)

    def infonce() -> None:
        logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        torch.autograd.grad(loss, [image, text, scale])

    yield Work("contrastive", "infonce [128,128]", "both", infonce, 6e-9 * 128**3, [image, text, image, text])


def adamw() -> Iterator[Work]:
    """One update of as many parameters as the contrastive step has, in matrices of [768,192]."""
    parameters = [torch.nn.Parameter(torch.randn(768, 192)) for _ in range(32)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True)
    count = sum(parameter.numel() for parameter in parameters)
    yield Work("adamw", f"{count} parameters", "update", optimizer.step, 14e-9 * count, 7 * parameters)


OPS = [linear, patch_embed, norms, attention, rope, activations, pixel_unshuffle, losses, adamw]


def measure(arguments: argparse.Namespace) -> None:
    """Times every op asked for in this process."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for op in OPS:
        for work in op():
            if arguments.only and not any(word in work.op for word in arguments.only):
                continue
            result = summary(measure_calls(work.run, arguments.warm_up, arguments.repeats))
            seconds = result["median_ms"] / 1e3
            gigabytes = sum(tensor.numel() * tensor.element_size() for tensor in work.tensors) / 1e9
            emit(
                {
                    "peer": f"pytorch {torch.__version__}",
                    "op": work.op,
                    "case": work.case,
                    "direction": work.direction,
                    "threads": arguments.threads,
                    **result,
                    "gflop_per_s": round(work.gflop / seconds, 1),
                    "gb_per_s": round(gigabytes / seconds, 1),
                }
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="words of the ops' names; all of them by default")
    parser.add_argument("--tuned", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_this_process:
        measure(arguments)
        return 0
    counts = ["--threads", str(arguments.threads), "--warm-up", str(arguments.warm_up)]
    counts += ["--repeats", str(arguments.repeats), "--in-this-process"]
    run_child(__file__, [*arguments.only, *counts], arguments.threads, arguments.tuned)
    return 0


if __name__ == "__main__":
    sys.exit(main())
