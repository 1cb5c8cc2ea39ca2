"""The goldens of single ops. Each function names the op, its cases with ragged shapes, and the PyTorch that defines it.

Wherever PyTorch has the op, PyTorch's own is called; the few formulas written out here say where they come from.
Shapes: B batch, T tokens, N rows, C width, H heads, Hk key/value heads, D head dim, F MLP width, V vocabulary, P patch.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_file import Golden

Values = dict[str, Tensor]


def record(
    golden: Golden,
    case: str,
    settings: dict,
    inputs: Values,
    function: Callable[[Values], Values],
    without_cotangent: tuple[str, ...] = (),
) -> None:
    """Runs one case and stores inputs, cotangents, outputs and all gradients.

    Outputs in `without_cotangent` (a saved statistic, say) are stored as values only.
    """
    golden.config["cases"][case] = settings
    for name, tensor in inputs.items():
        golden.store_exact(f"{case}/input.{name}", tensor)
        if tensor.is_floating_point():
            tensor.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for name, output in function(inputs).items():
        golden.store_result(f"{case}/value.{name}", output)
        if name not in without_cotangent:
            cotangent = golden.normal(*output.shape)
            golden.store_exact(f"{case}/cotangent.{name}", cotangent)
            total = total + (cotangent * output).sum()
    total.backward()
    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            golden.store_result(f"{case}/gradient.{name}", gradient)


def op(name: str) -> Golden:
    return Golden(f"op_{name}", {"op": name, "cases": {}})


def activate(x: Tensor, activation: str) -> Tensor:
    """The four activations by the names the configurations use."""
    match activation:
        case "none":
            return x
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
    raise ValueError(activation)


def linear() -> Golden:
    """y [N,O] = residual + layer_scale * activation(x [N,I] weight[O,I]ᵀ + bias)."""
    golden = op("linear")
    for case, rows, inner, outer, extras, activation in [
        ("plain", 7, 16, 13, (), "none"),
        ("bias", 9, 21, 16, ("bias",), "none"),
        ("bias_gelu", 5, 16, 11, ("bias",), "gelu"),
        ("bias_gelu_tanh", 5, 16, 11, ("bias",), "gelu_tanh"),
        ("bias_quick_gelu", 5, 16, 11, ("bias",), "quick_gelu"),
        ("residual", 7, 8, 12, ("residual",), "none"),
        ("bias_layer_scale_residual", 7, 8, 12, ("bias", "layer_scale", "residual"), "none"),
    ]:
        inputs = {"x": golden.normal(rows, inner), "weight": golden.normal(outer, inner, scale=inner**-0.5)}
        for extra in extras:
            shape = (rows, outer) if extra == "residual" else (outer,)
            inputs[extra] = golden.normal(*shape)

        def function(v: Values, activation=activation) -> Values:
            y = activate(F.linear(v["x"], v["weight"], v.get("bias")), activation)
            y = y * v["layer_scale"] if "layer_scale" in v else y
            return {"y": y + v["residual"] if "residual" in v else y}

        record(golden, case, {"activation": activation}, inputs, function)
    return golden


def norm(name: str) -> Golden:
    """y [N,C] = norm(x) * weight (+ bias); the residual case normalises sum = x + residual and returns both."""
    golden = op(name)
    for case, rows, width, eps, offset in [
        ("eps6", 7, 40, 1e-6, 0.0),
        ("eps5_ragged", 5, 33, 1e-5, 0.0),
        ("far_from_zero", 3, 24, 1e-6, 30.0),
        ("residual", 6, 24, 1e-6, 0.0),
    ]:
        inputs = {"x": golden.normal(rows, width, scale=2.0, offset=offset)}
        if case == "residual":
            inputs["residual"] = golden.normal(rows, width)
        inputs["weight"] = golden.normal(width, scale=0.3, offset=1.0)
        if name == "layer_norm":
            inputs["bias"] = golden.normal(width)

        def function(v: Values, eps=eps, width=width) -> Values:
            total = v["x"] + v["residual"] if "residual" in v else v["x"]
            if name == "layer_norm":
                y = F.layer_norm(total, (width,), v["weight"], v["bias"], eps)
            else:
                y = F.rms_norm(total, (width,), v["weight"], eps)
            return {"y": y, "sum": total} if "residual" in v else {"y": y}

        record(golden, case, {"eps": eps}, inputs, function)
    return golden


def layer_norm() -> Golden:
    return norm("layer_norm")


def rms_norm() -> Golden:
    return norm("rms_norm")


def qk_norm() -> Golden:
    """RMSNorm over the head dim of query [B,T,H,D] or key [B,T,Hk,D] with one weight [D] for all heads."""
    golden = op("qk_norm")
    for case, shape, eps in [("query", (2, 3, 3, 40), 1e-6), ("key", (1, 7, 1, 32), 1e-6)]:
        inputs = {"x": golden.normal(*shape), "weight": golden.normal(shape[-1], scale=0.3, offset=1.0)}
        record(
            golden, case, {"eps": eps}, inputs,
            lambda v, eps=eps: {"y": F.rms_norm(v["x"], v["weight"].shape, v["weight"], eps)},
        )  # fmt: skip
    return golden


def gelu() -> Golden:
    """Elementwise, with the tails: x [R,C]."""
    golden = op("gelu")
    for activation in ["gelu", "gelu_tanh", "quick_gelu"]:
        record(
            golden, activation, {"activation": activation}, {"x": golden.normal(5, 37, scale=3.0)},
            lambda v, activation=activation: {"y": activate(v["x"], activation)},
        )  # fmt: skip
    return golden


def swiglu() -> Golden:
    """y [N,F] = silu(gate) * up with gate_up [N,2F], the gate in the first F columns."""
    golden = op("swiglu")

    def function(v: Values) -> Values:
        gate, up = v["gate_up"].chunk(2, dim=-1)
        return {"y": F.silu(gate) * up}

    record(golden, "ragged", {}, {"gate_up": golden.normal(7, 2 * 29, scale=2.0)}, function)
    return golden


def visible(mask: str, query_tokens: int, prefix: Tensor | None, segments: Tensor | None, batch: int) -> Tensor:
    """Which keys [B,1,T,T] a query sees. prefix [B]: the first prefix[b] tokens are seen by all; segments [B,T]: only
    tokens of the same segment see one another."""
    i = torch.arange(query_tokens)[:, None]
    j = torch.arange(query_tokens)[None, :]
    seen = (j <= i) if mask != "full" else torch.ones(query_tokens, query_tokens, dtype=torch.bool)
    seen = seen[None].repeat(batch, 1, 1)
    if prefix is not None:
        seen = seen | (j[None] < prefix[:, None, None])
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    return seen[:, None]


def attention() -> Golden:
    """query [B,T,H,D], key and value [B,T,Hk,D] -> out [B,T,H,D] and log_sum_exp [B,H,T] of the scaled scores.

    Scale D^-1/2. Query head h reads key/value head h / (H / Hk). Mask "prefix" is causal plus a prefix all see.
    """
    golden = op("attention")
    for case, mask, batch, tokens, heads, kv_heads, dim, segment_lengths in [
        ("full_d64", "full", 1, 9, 2, 2, 64, None),
        ("full_d40", "full", 2, 7, 1, 1, 40, None),
        ("full_one_token", "full", 2, 1, 1, 1, 32, None),
        ("causal_grouped_d32", "causal", 2, 5, 4, 2, 32, None),
        ("causal_d32_long", "causal", 1, 67, 1, 1, 32, None),
        ("causal_grouped_d128", "causal", 1, 4, 2, 1, 128, None),
        ("prefix_d40", "prefix", 3, 5, 2, 1, 40, None),
        ("full_segments_d72", "full", 1, 9, 1, 1, 72, [3, 1, 5]),
        ("causal_segments_grouped_d32", "causal", 2, 11, 2, 1, 32, [6, 2, 3]),
    ]:
        inputs = {
            "query": golden.normal(batch, tokens, heads, dim),
            "key": golden.normal(batch, tokens, kv_heads, dim),
            "value": golden.normal(batch, tokens, kv_heads, dim),
        }
        if mask == "prefix":
            inputs["prefix"] = torch.tensor([3, 0, tokens])
        if segment_lengths:
            rows = [segment_lengths, segment_lengths[::-1]][:batch]
            inputs["segments"] = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(r)) for r in rows])

        def function(v: Values, mask=mask, batch=batch, tokens=tokens, group=heads // kv_heads, dim=dim) -> Values:
            query, key, value = (v[name].transpose(1, 2) for name in ("query", "key", "value"))
            seen = visible(mask, tokens, v.get("prefix"), v.get("segments"), batch)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=group > 1)
            scores = query @ key.repeat_interleave(group, dim=1).transpose(2, 3) * dim**-0.5
            log_sum_exp = scores.masked_fill(~seen, -math.inf).logsumexp(-1)
            return {"out": out.transpose(1, 2), "log_sum_exp": log_sum_exp}

        record(golden, case, {"mask": mask}, inputs, function, without_cotangent=("log_sum_exp",))
    return golden


def rotate_half(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates the pairs (i, i + D/2) of x [B,T,H,D] by angles [B,T,D/2] (the NeoX, or rotate-half, order)."""
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def inverse_frequencies(theta: float, dim: int) -> Tensor:
    """theta^(-2i/dim) for i in 0..dim/2 (Su et al. 2021, section 3.2.2)."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rope() -> Golden:
    """x [B,T,H,D] turned by its positions.

    One axis: positions [B,T], pair i turns by position * theta^(-2i/D). Two axes: positions [B,T,2] are (row, column);
    pairs 0..D/4 turn by row * theta^(-2i/(D/2)), pairs D/4..D/2 by column with the same frequencies (the vision tower
    of Qwen2-VL).
    """
    golden = op("rope")
    for case, batch, tokens, heads, dim, theta in [
        ("one_axis_d64", 2, 3, 2, 64, 1e6),
        ("one_axis_d40", 1, 5, 1, 40, 1e4),
        ("two_axes_d32", 2, 3, 2, 32, 1e4),
        ("two_axes_d40", 1, 7, 1, 40, 1e2),
    ]:
        axes = 1 if case.startswith("one") else 2
        shape = (batch, tokens) if axes == 1 else (batch, tokens, 2)
        inputs = {
            "x": golden.normal(batch, tokens, heads, dim),
            "positions": golden.integers(*shape, low=0, high=50),
        }

        def function(v: Values, axes=axes, dim=dim, theta=theta) -> Values:
            positions = v["positions"].double()
            if axes == 1:
                angles = positions[..., None] * inverse_frequencies(theta, dim)
            else:
                angles = (positions[..., None] * inverse_frequencies(theta, dim // 2)).flatten(2)
            return {"y": rotate_half(v["x"], angles)}

        record(golden, case, {"axes": axes, "theta": theta}, inputs, function)
    return golden


def unshuffle(x: Tensor) -> Tensor:
    """[B,h,w,C] -> [B,h/2,w/2,4C], neighbours in the order (0,0) (0,1) (1,0) (1,1)."""
    return torch.cat([x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]], dim=-1)


def pixel_unshuffle() -> Golden:
    """x [B,h,w,C] -> y [B,h/2,w/2,4C]."""
    golden = op("pixel_unshuffle")
    record(golden, "wide", {}, {"x": golden.normal(2, 4, 6, 5)}, lambda v: {"y": unshuffle(v["x"])})
    record(golden, "one_tile", {}, {"x": golden.normal(3, 2, 2, 3)}, lambda v: {"y": unshuffle(v["x"])})
    return golden


def patch_embed() -> Golden:
    """image [B,3,h,w], weight [C,3PP] (channel, row, column), bias [C], position [T,C] -> y [B,T,C], row-major."""
    golden = op("patch_embed")
    for case, batch, height, width, patch, channels, extras in [
        ("bias_position", 2, 8, 12, 4, 16, ("bias", "position")),
        ("bias", 1, 15, 10, 5, 9, ("bias",)),
        ("plain", 2, 6, 12, 6, 7, ()),
    ]:
        tokens = (height // patch) * (width // patch)
        inputs = {
            "image": golden.normal(batch, 3, height, width),
            "weight": golden.normal(channels, 3 * patch * patch, scale=0.2),
        }
        for extra in extras:
            inputs[extra] = golden.normal(*((channels,) if extra == "bias" else (tokens, channels)))

        def function(v: Values, patch=patch, channels=channels) -> Values:
            kernel = v["weight"].view(channels, 3, patch, patch)
            y = F.conv2d(v["image"], kernel, v.get("bias"), stride=patch).flatten(2).transpose(1, 2)
            return {"y": y + v["position"] if "position" in v else y}

        record(golden, case, {"patch": patch}, inputs, function)
    return golden


def embedding() -> Golden:
    """y [B,T,C]: row token[b,t] of the table [V,C], or row slot[b,t] of the image tokens [S,C] where slot is not -1."""
    golden = op("embedding")
    tokens = golden.integers(3, 7, low=0, high=11)
    record(
        golden, "plain", {}, {"table": golden.normal(11, 12), "token": tokens},
        lambda v: {"y": F.embedding(v["token"], v["table"])},
    )  # fmt: skip
    slots = torch.full((3, 7), -1)
    slots[0, 1:5] = torch.arange(4)
    slots[2, 3:7] = torch.arange(4, 8)

    def splice(v: Values) -> Values:
        rows = F.embedding(v["token"], v["table"])
        images = v["images"][v["slot"].clamp(min=0)]
        return {"y": torch.where((v["slot"] >= 0)[..., None], images, rows)}

    inputs = {
        "table": golden.normal(13, 12), "token": golden.integers(3, 7, low=0, high=13),
        "images": golden.normal(8, 12), "slot": slots,
    }  # fmt: skip
    record(golden, "splice", {}, inputs, splice)
    return golden


def pooling() -> Golden:
    """x [B,T,C] -> y [B,C]: mean, mean with weights [B,T] that are divided by their sum, or the row at index [B]."""
    golden = op("pooling")
    record(golden, "mean", {}, {"x": golden.normal(3, 7, 10)}, lambda v: {"y": v["x"].mean(1)})
    weights = golden.integers(3, 7, low=0, high=2).double()
    weights[:, 2] = 1.0
    total = weights.sum(1, keepdim=True)
    golden.store_exact("weighted_mean/input.weights", weights)
    record(
        golden, "weighted_mean", {}, {"x": golden.normal(3, 7, 10)},
        lambda v: {"y": ((weights / total)[..., None] * v["x"]).sum(1)},
    )  # fmt: skip
    record(
        golden, "index", {}, {"x": golden.normal(3, 7, 10), "index": torch.tensor([6, 0, 3])},
        lambda v: {"y": v["x"][torch.arange(3), v["index"]]},
    )  # fmt: skip
    return golden


def attention_pool() -> Golden:
    """SigLIP's pooling head: one learned query attends to x [B,T,C], then a + mlp(norm(a)) -> y [B,C].

    Rows of attention.qkv are q, then k, then v, head-major within each; the MLP uses tanh GELU; LayerNorm eps 1e-6.
    """
    golden = op("attention_pool")
    batch, tokens, width, heads, mlp_width = 2, 7, 24, 3, 20
    shapes = {
        "probe": (width,),
        "attention.qkv.weight": (3 * width, width), "attention.qkv.bias": (3 * width,),
        "attention.out.weight": (width, width), "attention.out.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
        "mlp.fc1.weight": (mlp_width, width), "mlp.fc1.bias": (mlp_width,),
        "mlp.fc2.weight": (width, mlp_width), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    inputs = {"x": golden.normal(batch, tokens, width)}
    for name, shape in shapes.items():
        inputs[name] = golden.normal(*shape, scale=shape[-1] ** -0.5 if len(shape) == 2 else 0.5)

    def function(v: Values) -> Values:
        pooled, _ = F.multi_head_attention_forward(
            v["probe"].expand(1, batch, width), v["x"].transpose(0, 1), v["x"].transpose(0, 1), width, heads,
            v["attention.qkv.weight"], v["attention.qkv.bias"], None, None, False, 0.0,
            v["attention.out.weight"], v["attention.out.bias"], need_weights=False,
        )  # fmt: skip
        pooled = pooled[0]
        hidden = F.layer_norm(pooled, (width,), v["norm.weight"], v["norm.bias"], 1e-6)
        hidden = F.gelu(F.linear(hidden, v["mlp.fc1.weight"], v["mlp.fc1.bias"]), approximate="tanh")
        return {"y": pooled + F.linear(hidden, v["mlp.fc2.weight"], v["mlp.fc2.bias"])}

    record(golden, "siglip", {"heads": heads, "eps": 1e-6, "activation": "gelu_tanh"}, inputs, function)
    return golden


def l2_normalize() -> Golden:
    """y [N,E] = x / max(|x|, 1e-12) by rows."""
    golden = op("l2_normalize")
    record(golden, "rows", {}, {"x": golden.normal(5, 19, scale=3.0)}, lambda v: {"y": F.normalize(v["x"], dim=-1)})
    return golden


def gram() -> Golden:
    """The Gram loss of DINOv3 (Simeoni et al. 2025, section 4.2) between features x and y [B,T,C] of each image's patches: the
    mean squared difference of their matrices of cosines, as its gram_loss has it at img_level."""
    golden = op("gram")
    for case, (images, tokens, width, other) in {"one": (1, 5, 7, 7), "wider": (3, 9, 12, 20)}.items():
        inputs = {"x": golden.normal(images, tokens, width), "y": golden.normal(images, tokens, other)}

        def function(v: Values) -> Values:
            ours, theirs = (F.normalize(v[name], dim=-1) for name in ("x", "y"))
            return {"loss": F.mse_loss(ours @ ours.mT, theirs @ theirs.mT).reshape(1)}

        record(golden, case, {}, inputs, function)
    return golden


def target_weights(targets: Tensor, samples: Tensor, weighting: str) -> Tensor:
    """w [N] of each row: 1, 1/n or 1/sqrt(n) with n the supervised rows of its sample; 0 where the target is -100."""
    supervised = targets != -100
    counts = torch.zeros(int(samples.max()) + 1, dtype=torch.float64).index_add_(0, samples, supervised.double())
    power = {"token": 0.0, "sample": -1.0, "square": -0.5}[weighting]
    return supervised * counts.clamp(min=1.0)[samples] ** power


def next_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, samples: Tensor, weighting: str) -> Tensor:
    """sum(w * cross entropy) / sum(w) over rows; the targets are already shifted."""
    weights = target_weights(targets, samples, weighting)
    losses = F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=-100, reduction="none")
    return (weights * losses).sum() / weights.sum()


def linear_cross_entropy() -> Golden:
    """loss [1] of hidden [N,C] times weight [V,C]ᵀ against targets [N]; -100 is ignored.

    `samples` [N] says which sample a row belongs to; the last sample has nothing supervised.
    """
    golden = op("linear_cross_entropy")
    lengths = torch.tensor([9, 4, 7, 3])
    for weighting in ["token", "sample", "square"]:
        samples = torch.repeat_interleave(torch.arange(4), lengths)
        targets = golden.integers(23, low=0, high=41)
        targets[golden.integers(23, low=0, high=3) == 0] = -100
        targets[0], targets[10], targets[15], targets[20:] = 40, 0, 7, -100
        inputs = {
            "hidden": golden.normal(23, 16), "weight": golden.normal(41, 16, scale=0.6),
            "targets": targets, "samples": samples,
        }  # fmt: skip

        def function(v: Values, weighting=weighting) -> Values:
            loss = next_token_loss(v["hidden"], v["weight"], v["targets"], v["samples"], weighting)
            weights = target_weights(v["targets"], v["samples"], weighting)
            return {"loss": loss.reshape(1), "weights": weights}

        record(golden, weighting, {"weighting": weighting}, inputs, function, without_cotangent=("weights",))
    return golden


def contrastive_loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor | None) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021, figure 3) or, with a bias, the sigmoid loss (Zhai et al. 2023,
    equation 1) of raw features [N,E], which are normalised here."""
    logits = log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    if bias is None:
        labels = torch.arange(image.shape[0])
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    signs = 2.0 * torch.eye(image.shape[0], dtype=image.dtype) - 1.0
    return -F.logsigmoid(signs * (logits + bias)).sum() / image.shape[0]


def contrastive() -> Golden:
    """loss [1] of raw features image [N,E] and text [N,E] with log_scale [1] and, for sigmoid, bias [1]."""
    golden = op("contrastive")
    for case, kind, rows, width, log_scale, bias in [
        ("infonce", "infonce", 11, 24, math.log(1 / 0.07), None),
        ("infonce_largest_scale", "infonce", 7, 16, math.log(100.0), None),
        ("infonce_many", "infonce", 70, 8, 1.0, None),
        ("sigmoid", "sigmoid", 11, 24, math.log(10.0), -10.0),
        ("sigmoid_many", "sigmoid", 70, 8, 1.5, -2.0),
    ]:
        image = golden.normal(rows, width)
        inputs = {
            "image": image, "text": (image + golden.normal(rows, width)).float().double(),
            "log_scale": torch.tensor([log_scale]).float().double(),
        }  # fmt: skip
        if bias is not None:
            inputs["bias"] = torch.tensor([bias]).float().double()
        record(
            golden, case, {"kind": kind}, inputs,
            lambda v: {"loss": contrastive_loss(v["image"], v["text"], v["log_scale"], v.get("bias")).reshape(1)},
        )  # fmt: skip
    return golden


def adamw() -> Golden:
    """Three steps of torch.optim.AdamW after torch's clip_grad_norm_ (factor max_norm / (norm + 1e-6) where below 1).

    Parameters `decayed` [n] and `plain` [m] (no weight decay); gradients [3,n] and [3,m]; rates [3]. Values after each
    step: parameters and both moments [3,n], and the gradient norm before the clip [3].
    """
    golden = op("adamw")
    for case, max_norm, scale in [("clipped", 1.0, 1.0), ("below_the_clip", 1.0, 0.02)]:
        settings = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_norm": max_norm}
        golden.config["cases"][case] = settings
        rates = torch.tensor([1e-3, 5e-3, 2e-3]).float().double()
        start = {"decayed": golden.normal(19), "plain": golden.normal(5)}
        gradients = {name: golden.normal(3, tensor.numel(), scale=scale) for name, tensor in start.items()}
        golden.store_exact(f"{case}/input.rates", rates)
        for name, tensor in start.items():
            golden.store_exact(f"{case}/input.{name}", tensor)
            golden.store_exact(f"{case}/input.{name}_gradients", gradients[name])
        parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        optimizer = torch.optim.AdamW(
            [
                {"params": [parameters["decayed"]], "weight_decay": settings["weight_decay"]},
                {"params": [parameters["plain"]], "weight_decay": 0.0},
            ],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["eps"],
        )
        norms, history = [], {name: [] for name in parameters}
        for step in range(3):
            for name, parameter in parameters.items():
                parameter.grad = gradients[name][step].clone()
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm))
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            optimizer.step()
            for name, parameter in parameters.items():
                state = optimizer.state[parameter]
                moments = [state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
                history[name].append([parameter.detach().clone(), *moments])
        golden.store_result(f"{case}/value.norms", torch.stack(norms))
        for name, steps in history.items():
            for index, suffix in enumerate(["", "_first_moment", "_second_moment"]):
                golden.store_result(f"{case}/value.{name}{suffix}", torch.stack([step[index] for step in steps]))
    return golden


OPS = [
    linear, layer_norm, rms_norm, qk_norm, gelu, swiglu, attention, rope, pixel_unshuffle, patch_embed, embedding,
    pooling, attention_pool, l2_normalize, gram, linear_cross_entropy, contrastive, adamw,
]  # fmt: skip
