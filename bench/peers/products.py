"""The products of a linear layer and attention in PyTorch, on one thread, by processor time: medians of nine runs.

    python bench/peers/products.py

The peer of `cargo run --release -p keel-cpu --example products`, at the same shapes, and of attention at those of the lead
steps and of ViT-S/16.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable

import torch
import torch.nn.functional as F

SHAPES = [
    (8192, 192, 576), (8192, 192, 192), (8192, 192, 768), (8192, 768, 192), (4096, 256, 512), (4096, 256, 1536),
    (4096, 768, 256),
]  # fmt: skip
# Name, query heads, key heads, head dim, batch, tokens, causal.
ATTENTION = [
    ("T 64, batch 128", 3, 3, 64, 128, 64, False),
    ("T 32, batch 128, causal", 3, 3, 64, 128, 32, True),
    ("T 64, batch 64, causal, 2 key heads", 4, 2, 64, 64, 64, True),
    ("T 196, batch 16", 6, 6, 64, 16, 196, False),
]


def median_ms(work: Callable[[], object]) -> float:
    """The median processor time of the runs after the first."""
    work()
    times = []
    for _ in range(9):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return statistics.median(times) * 1e3


def products(m: int, k: int, n: int) -> list[float]:
    """y, dx, and dW with db."""
    x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
    y, dx, dw = torch.empty(m, n), torch.empty(m, k), torch.empty(n, k)
    return [
        median_ms(lambda: torch.mm(x, w.T, out=y)),
        median_ms(lambda: torch.mm(dy, w, out=dx)),
        median_ms(lambda: (torch.mm(dy.T, x, out=dw), dy.sum(0))),
    ]


def attention(heads: int, key_heads: int, dim: int, batch: int, tokens: int, is_causal: bool) -> tuple[float, float]:
    """Forward, and what backward adds."""
    qkv = torch.randn(batch, tokens, heads + 2 * key_heads, dim, requires_grad=True)
    cotangent = torch.randn(batch, tokens, heads * dim)

    def forward() -> torch.Tensor:
        query, key, value = (part.transpose(1, 2) for part in qkv.split([heads, key_heads, key_heads], dim=2))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=heads != key_heads)
        return y.transpose(1, 2).reshape(batch, tokens, heads * dim)

    def both() -> None:
        qkv.grad = None
        forward().backward(cotangent)

    with torch.no_grad():
        one = median_ms(forward)
    return one, median_ms(both) - one


def main() -> None:
    torch.set_num_threads(1)
    totals = [sum(times) for times in zip(*(products(*shape) for shape in SHAPES))]
    print(", ".join(f"{name} {ms:.1f} ms" for name, ms in zip(["y", "dx", "dW"], totals)))
    for name, *sizes in ATTENTION:
        forward, backward = attention(*sizes)
        print(f"attention, {name}: forward {forward:.2f} ms, backward {backward:.2f} ms")


if __name__ == "__main__":
    main()
