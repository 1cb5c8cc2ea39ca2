"""The lead training steps, that of ViT-S/16 and its tower's features, in PyTorch: forward, backward and one AdamW update, on random data that stays the same.

    python bench/peers/steps.py                      every step, eager f32, two threads, one JSON line each
    python bench/peers/steps.py stage_three --bf16   one step, autocast
    python bench/peers/steps.py --tuned              with an allocator that keeps its memory
    python bench/peers/steps.py --forms              every form in turn: eager, tuned, bf16, compiled, compiled bf16
    python bench/peers/steps.py contrastive --serve  a step for each line of input, one JSON line each

This is the configuration that the engine's own benchmark builds, name for name. B batch, T tokens, C width.

    vision tower, `vision.`       64x64 RGB images, patch 8 -> T = 64; C 192, 6 blocks, 3 heads of 64, MLP 768
        x = patch_embed(image) + position                    patch_embed.{weight [192,192], bias}, position [64,192]
        x = x + out(attention(qkv(norm1(x))))                qkv [576,192] + bias, out [192,192] + bias, scale 1/8
        x = x + fc2(gelu(fc1(norm2(x))))                     exact GELU; fc1 [768,192], fc2 [192,768], biases
        features = final_norm(x)                             LayerNorm with weight and bias, eps 1e-6, everywhere
    text tower, `text.`           embedding [512,192], position [32,192], 4 such blocks, causal; pooled at caption_end
    contrastive                   image = mean of features, text = pooled; contrastive.image_projection and
                                  .text_projection [128,192], L2-normalised; InfoNCE, log_scale [1] = ln(1/0.07)
                                  batch 128; 4,652,353 parameters
    connector, `connector.`       2x2 pixel-unshuffle -> 16 tokens of 768; LayerNorm eps 1e-5; fc1 [256,768]; exact
                                  GELU; fc2 [256,256]; biases
    decoder, `language.`          embedding [512,256] tied with the output; 6 blocks: RMSNorm eps 1e-6; qkv [512,256]
                                  with bias, 4 query and 2 key/value heads of 64; rotate-half RoPE theta 1e6; causal;
                                  out [256,256]; gate_up [1536,256], down [256,768]; final RMSNorm
    stage III                     rows = 16 visual tokens, then 48 text tokens; rows 15..62 predict the 48 text tokens,
                                  mean cross entropy; every part trained; batch 64; 7,839,168 parameters
    vit_small                     contrastive with a tower of 224x224 images, patch 16 -> T = 196; C 384, 12 blocks, 6 heads
                                  of 64, MLP 1536; batch 16; 23,622,913 parameters
    vit_small_features            that tower alone, forward, without gradients
    AdamW                         rate 1e-3, betas 0.9 and 0.95, eps 1e-8, decay 0.1 on matrices and tables, 0 on
                                  vectors; no clip
    initial values                matrices, tables and positions N(0, 0.02); norm weights 1; biases 0

What runs here is a plain good eager program: fused qkv, scaled_dot_product_attention, fused AdamW, logits only for the
rows that have a target.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import emit, measure_calls, peak_rss_mib, run_child, summary

RSS_AT_IMPORT = peak_rss_mib()
IMAGE, PATCH, WIDTH, HEADS, SHARED = 64, 8, 192, 3, 128
VISION_LAYERS, TEXT_LAYERS, CONTEXT, VOCABULARY = 6, 4, 32, 512
PATCHES = (IMAGE // PATCH) ** 2
DECODER_WIDTH, DECODER_LAYERS, DECODER_HEADS, KV_HEADS, HEAD_DIM, DECODER_MLP = 256, 6, 4, 2, 64, 768
VISUAL_TOKENS, TEXT_TOKENS = PATCHES // 4, 48
STEPS = ["contrastive", "stage_three", "vit_small", "vit_small_features"]


class Tower(NamedTuple):
    """Sizes of a tower of images."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int

    @property
    def patches(self) -> int:
        """Tokens of an image."""
        return (self.image // self.patch) ** 2


LEAD = Tower(IMAGE, PATCH, WIDTH, VISION_LAYERS, HEADS)
VIT_SMALL = Tower(224, 16, 384, 12, 6)


class Block(nn.Module):
    """A pre-norm block of the classic form, [B,T,C] -> [B,T,C]."""

    def __init__(self, is_causal: bool, width: int = WIDTH, heads: int = HEADS):
        super().__init__()
        self.is_causal, self.heads = is_causal, heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTower(nn.Module):
    """Images [B,3,S,S] -> features [B,T,C]."""

    def __init__(self, sizes: Tower = LEAD):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.position = nn.Parameter(torch.empty(sizes.patches, sizes.width))
        self.blocks = nn.ModuleList(Block(False, sizes.width, sizes.heads) for _ in range(sizes.layers))
        self.final_norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)


class TextTower(nn.Module):
    """Captions [B,32] -> the final hidden row of the token at caption_end [B], [B,C]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(Block(is_causal=True) for _ in range(TEXT_LAYERS))
        self.final_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, captions: Tensor, caption_end: Tensor) -> Tensor:
        x = self.embedding(captions) + self.position
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)[torch.arange(x.shape[0]), caption_end]


class Contrastive(nn.Module):
    """The step of the warm start: both towers and InfoNCE."""

    def __init__(self, sizes: Tower = LEAD):
        super().__init__()
        self.vision, self.text = VisionTower(sizes), TextTower()
        self.image_projection = nn.Linear(sizes.width, SHARED, bias=False)
        self.text_projection = nn.Linear(WIDTH, SHARED, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))

    def forward(self, images: Tensor, captions: Tensor, caption_end: Tensor) -> Tensor:
        image = F.normalize(self.image_projection(self.vision(images).mean(1)), dim=-1)
        text = F.normalize(self.text_projection(self.text(captions, caption_end)), dim=-1)
        logits = self.log_scale.exp() * image @ text.T
        labels = torch.arange(image.shape[0])
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class DecoderBlock(nn.Module):
    """A block of the Qwen2.5 form, [B,T,D] -> [B,T,D]."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.RMSNorm(DECODER_WIDTH, eps=1e-6)
        self.qkv = nn.Linear(DECODER_WIDTH, (DECODER_HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.out = nn.Linear(DECODER_HEADS * HEAD_DIM, DECODER_WIDTH, bias=False)
        self.norm2 = nn.RMSNorm(DECODER_WIDTH, eps=1e-6)
        self.gate_up = nn.Linear(DECODER_WIDTH, 2 * DECODER_MLP, bias=False)
        self.down = nn.Linear(DECODER_MLP, DECODER_WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, -1, HEAD_DIM)
        turned, value = qkv.split([DECODER_HEADS + KV_HEADS, KV_HEADS], dim=2)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        query, key = turned.split([DECODER_HEADS, KV_HEADS], dim=2)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class StageThree(nn.Module):
    """The step of world-knowledge infusion: vision tower, connector and decoder, next-token loss."""

    def __init__(self):
        super().__init__()
        self.vision = VisionTower()
        self.connector = nn.Sequential(
            nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, DECODER_WIDTH), nn.GELU(),
            nn.Linear(DECODER_WIDTH, DECODER_WIDTH),
        )  # fmt: skip
        self.embedding = nn.Embedding(VOCABULARY, DECODER_WIDTH)
        self.blocks = nn.ModuleList(DecoderBlock() for _ in range(DECODER_LAYERS))
        self.final_norm = nn.RMSNorm(DECODER_WIDTH, eps=1e-6)
        positions = torch.arange(VISUAL_TOKENS + TEXT_TOKENS)[:, None]
        angles = positions * 1e6 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        side = math.isqrt(PATCHES)
        features = self.vision(images).view(-1, side // 2, 2, side // 2, 2, WIDTH)
        visual = self.connector(features.transpose(2, 3).reshape(-1, VISUAL_TOKENS, 4 * WIDTH))
        x = torch.cat([visual, self.embedding(tokens)], dim=1)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        hidden = self.final_norm(x[:, VISUAL_TOKENS - 1 : -1])
        logits = F.linear(hidden.flatten(0, 1), self.embedding.weight)
        return F.cross_entropy(logits, tokens.flatten())


def initialise(model: nn.Module) -> None:
    """The initial values of the table above."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name == "log_scale":
                parameter.fill_(math.log(1 / 0.07))
            elif parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def build(step: str) -> tuple[nn.Module, tuple[Tensor, ...], int, int]:
    """Model, inputs, images a step and the number of parameters that the table above promises."""
    if step == "contrastive":
        inputs = (
            torch.randn(128, 3, IMAGE, IMAGE),
            torch.randint(VOCABULARY, (128, CONTEXT)),
            torch.randint(CONTEXT, (128,)),
        )
        return Contrastive(), inputs, 128, 4_652_353
    if step.startswith("vit_small"):
        images = torch.randn(16, 3, VIT_SMALL.image, VIT_SMALL.image)
        if step == "vit_small_features":
            return VisionTower(VIT_SMALL), (images,), 16, 21_664_896
        inputs = (images, torch.randint(VOCABULARY, (16, CONTEXT)), torch.randint(CONTEXT, (16,)))
        return Contrastive(VIT_SMALL), inputs, 16, 23_622_913
    inputs = (torch.randn(64, 3, IMAGE, IMAGE), torch.randint(VOCABULARY, (64, TEXT_TOKENS)))
    return StageThree(), inputs, 64, 7_839_168


def tower_flop(sizes: Tower) -> float:
    """Of one image, forward."""
    block = 2 * 12 * sizes.width**2 + 4 * sizes.patches * sizes.width
    return sizes.patches * (2 * 3 * sizes.patch**2 * sizes.width + sizes.layers * block)


def step_gflop(step: str) -> float:
    """Multiply-adds of products and attention counted twice, backward as twice the forward, whole causal squares."""
    if step == "vit_small_features":
        return 1e-9 * 16 * tower_flop(VIT_SMALL)
    sizes = VIT_SMALL if step == "vit_small" else LEAD
    vision = tower_flop(sizes)
    if step != "stage_three":
        batch = 16 if step == "vit_small" else 128
        text = CONTEXT * TEXT_LAYERS * (2 * 12 * WIDTH**2 + 4 * CONTEXT * WIDTH)
        return 3e-9 * batch * (vision + text + 2 * (sizes.width + WIDTH) * SHARED + 2 * batch * SHARED)
    tokens = VISUAL_TOKENS + TEXT_TOKENS
    connector = 2 * VISUAL_TOKENS * (4 * WIDTH * DECODER_WIDTH + DECODER_WIDTH**2)
    projections = (2 * DECODER_HEADS + 2 * KV_HEADS) * HEAD_DIM * DECODER_WIDTH
    layer = 2 * (projections + 3 * DECODER_WIDTH * DECODER_MLP) + 4 * tokens * DECODER_HEADS * HEAD_DIM
    head = 2 * TEXT_TOKENS * DECODER_WIDTH * VOCABULARY
    return 3e-9 * 64 * (vision + connector + tokens * DECODER_LAYERS * layer + head)


def prepare(step: str, arguments: argparse.Namespace) -> tuple[Callable[[], None], list[float], int, int]:
    """What runs one step, the losses it makes, images a step, and parameters."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, inputs, images, promised = build(step)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == promised, f"{step}: {parameters:,} parameters, wanted {promised:,}"
    initialise(model)
    forward = torch.compile(model) if arguments.compile else model
    losses: list[float] = []

    def use() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            losses.append(forward(*inputs).sum().item())

    if step.endswith("_features"):
        return use, losses, images, parameters
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            loss = forward(*inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return run, losses, images, parameters


def serve(step: str, arguments: argparse.Namespace) -> None:
    """Runs a step for each line of input and answers with its wall time and the processor time of all threads."""
    run, *_ = prepare(step, arguments)
    for _ in range(arguments.warm_up):
        run()
    emit({"peer": f"pytorch {torch.__version__}"})
    for _ in sys.stdin:
        start, before = time.perf_counter(), time.process_time()
        run()
        ms, processor_ms = (time.perf_counter() - start) * 1e3, (time.process_time() - before) * 1e3
        emit({"ms": ms, "processor_ms": processor_ms, "rss_peak_mib": peak_rss_mib()})


def measure(step: str, arguments: argparse.Namespace) -> None:
    """Runs one step in this process and prints its line."""
    run, losses, images, parameters = prepare(step, arguments)
    calls = measure_calls(run, arguments.warm_up, arguments.repeats, arguments.patience)
    gflop = step_gflop(step)
    result = summary(calls)
    emit(
        {
            "peer": f"pytorch {torch.__version__}",
            "step": step,
            "form": form_name(arguments),
            "threads": arguments.threads,
            **result,
            "gflop": round(gflop, 1),
            "gflop_per_s": round(gflop / result["median_ms"] * 1e3, 1),
            "images_per_s": round(images / result["median_ms"] * 1e3, 1),
            "parameters": parameters,
            "first_loss": round(losses[0], 5),
            "last_loss": round(losses[-1], 5),
            "rss_at_import_mib": round(RSS_AT_IMPORT),
            "rss_peak_mib": round(peak_rss_mib()),
        }
    )


def form_name(arguments: argparse.Namespace) -> str:
    """The form as the tables call it."""
    words = ["compiled" if arguments.compile else "eager", "bf16" if arguments.bf16 else "f32"]
    return " ".join(words + (["tuned"] if arguments.tuned else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=[*STEPS, "all"], default="all")
    parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    parser.add_argument("--tuned", action="store_true", help="an allocator that keeps freed memory")
    parser.add_argument("--forms", action="store_true", help="every form in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for calls that nobody disturbs")
    parser.add_argument("--serve", action="store_true", help="a step for each line of input")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve and arguments.in_this_process:
        serve(arguments.step, arguments)
        return 0
    if arguments.in_this_process:
        measure(arguments.step, arguments)
        return 0

    given = [f"--{name}" for name in ("compile", "bf16", "tuned") if getattr(arguments, name)]
    forms = [[], ["--tuned"], ["--bf16"], ["--compile"], ["--compile", "--bf16"]] if arguments.forms else [given]
    counts = ["--threads", str(arguments.threads), "--warm-up", str(arguments.warm_up)]
    counts += ["--repeats", str(arguments.repeats), "--patience", str(arguments.patience), "--in-this-process"]
    counts += ["--serve"] if arguments.serve else []
    for step in STEPS if arguments.step == "all" else [arguments.step]:
        for form in forms:
            run_child(__file__, [step, *form, *counts], arguments.threads, "--tuned" in form)
    return 0


if __name__ == "__main__":
    sys.exit(main())
