"""The goldens of whole tiny models: towers, decoders, the three-part model and the contrastive pairs.

Parameters carry the engine's names. Every model is a plain function of a dictionary of parameters, so that the forms
differ only where their configuration says. Shapes: B batch, T tokens, C width, H heads, Hk key/value heads, D head dim
(or the decoder's width in the connector), F MLP width, V vocabulary, P patch, E shared width, L layers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_file import Golden
from golden_ops import activate, contrastive_loss, inverse_frequencies, next_token_loss, rotate_half, unshuffle

Values = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

SAILVIT = {
    "image_size": 12, "patch_size": 4, "width": 32, "layers": 2, "heads": 2, "mlp_width": 24,
    "norm": "rms_norm", "norm_eps": 1e-5, "mlp": "swiglu", "activation": "silu",
    "patch_bias": True, "patch_norm": True, "class_token": False, "pre_norm": False,
    "qkv_bias": False, "out_bias": False, "mlp_bias": False, "layer_scale": False, "final_norm": True,
}  # fmt: skip
CLASSIC = SAILVIT | {
    "norm": "layer_norm", "norm_eps": 1e-6, "mlp": "classic", "activation": "gelu", "patch_norm": False,
    "qkv_bias": True, "out_bias": True, "mlp_bias": True, "mlp_width": 40,
}  # fmt: skip
CLIP = CLASSIC | {
    "image_size": 15, "patch_size": 5, "norm_eps": 1e-5, "activation": "quick_gelu",
    "patch_bias": False, "class_token": True, "pre_norm": True,
}  # fmt: skip
INTERNVIT = CLASSIC | {"class_token": True, "layer_scale": True, "final_norm": False}
SIGLIP = CLASSIC | {"image_size": 15, "patch_size": 5, "width": 24, "heads": 1, "activation": "gelu_tanh"}
TEXT = {
    "vocabulary": 23, "context": 9, "width": 24, "layers": 2, "heads": 3, "mlp_width": 32,
    "norm": "layer_norm", "norm_eps": 1e-6, "mlp": "classic", "activation": "gelu",
    "qkv_bias": True, "out_bias": True, "mlp_bias": True, "layer_scale": False, "final_norm": True,
}  # fmt: skip
QWEN25 = {
    "vocabulary": 40, "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 40,
    "norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True, "qk_norm": False, "tied": True,
}  # fmt: skip
QWEN3 = QWEN25 | {
    "heads": 3, "qkv_bias": False, "qk_norm": True, "tied": False,
}  # fmt: skip


def norm_shapes(prefix: str, kind: str, width: int) -> Shapes:
    shapes = {f"{prefix}.weight": (width,)}
    return shapes | {f"{prefix}.bias": (width,)} if kind == "layer_norm" else shapes


def linear_shapes(prefix: str, outer: int, inner: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{prefix}.weight": (outer, inner)}
    return shapes | {f"{prefix}.bias": (outer,)} if bias else shapes


def encoder_block_shapes(prefix: str, c: dict) -> Shapes:
    width, inner = c["width"], c["mlp_width"]
    shapes = norm_shapes(f"{prefix}.norm1", c["norm"], width)
    shapes |= linear_shapes(f"{prefix}.attention.qkv", 3 * width, width, c["qkv_bias"])
    shapes |= linear_shapes(f"{prefix}.attention.out", width, width, c["out_bias"])
    shapes |= {f"{prefix}.layer_scale1": (width,)} if c["layer_scale"] else {}
    shapes |= norm_shapes(f"{prefix}.norm2", c["norm"], width)
    if c["mlp"] == "swiglu":
        shapes |= linear_shapes(f"{prefix}.mlp.gate_up", 2 * inner, width, c["mlp_bias"])
        shapes |= linear_shapes(f"{prefix}.mlp.down", width, inner, c["mlp_bias"])
    else:
        shapes |= linear_shapes(f"{prefix}.mlp.fc1", inner, width, c["mlp_bias"])
        shapes |= linear_shapes(f"{prefix}.mlp.fc2", width, inner, c["mlp_bias"])
    return shapes | ({f"{prefix}.layer_scale2": (width,)} if c["layer_scale"] else {})


def vision_shapes(c: dict) -> Shapes:
    width, side = c["width"], c["image_size"] // c["patch_size"]
    shapes = linear_shapes("vision.patch_embed", width, 3 * c["patch_size"] ** 2, c["patch_bias"])
    shapes |= {"vision.patch_norm.weight": (width,)} if c["patch_norm"] else {}
    shapes |= {"vision.class_token": (width,)} if c["class_token"] else {}
    shapes["vision.position"] = (side * side + c["class_token"], width)
    shapes |= norm_shapes("vision.pre_norm", c["norm"], width) if c["pre_norm"] else {}
    for layer in range(c["layers"]):
        shapes |= encoder_block_shapes(f"vision.blocks.{layer}", c)
    return shapes | (norm_shapes("vision.final_norm", c["norm"], width) if c["final_norm"] else {})


def text_shapes(c: dict) -> Shapes:
    shapes: Shapes = {"text.embedding": (c["vocabulary"], c["width"]), "text.position": (c["context"], c["width"])}
    for layer in range(c["layers"]):
        shapes |= encoder_block_shapes(f"text.blocks.{layer}", c)
    return shapes | norm_shapes("text.final_norm", c["norm"], c["width"])


def connector_shapes(vision_width: int, width: int) -> Shapes:
    shapes = norm_shapes("connector.norm", "layer_norm", 4 * vision_width)
    shapes |= linear_shapes("connector.fc1", width, 4 * vision_width, True)
    return shapes | linear_shapes("connector.fc2", width, width, True)


def language_shapes(c: dict) -> Shapes:
    width, heads, kv_heads, dim, inner = (c[k] for k in ("width", "heads", "kv_heads", "head_dim", "mlp_width"))
    shapes: Shapes = {"language.embedding": (c["vocabulary"], width)}
    for layer in range(c["layers"]):
        prefix = f"language.blocks.{layer}"
        shapes |= norm_shapes(f"{prefix}.norm1", "rms_norm", width)
        shapes |= linear_shapes(f"{prefix}.attention.qkv", (heads + 2 * kv_heads) * dim, width, c["qkv_bias"])
        if c["qk_norm"]:
            shapes |= {f"{prefix}.attention.q_norm.weight": (dim,), f"{prefix}.attention.k_norm.weight": (dim,)}
        shapes |= linear_shapes(f"{prefix}.attention.out", width, heads * dim, False)
        shapes |= norm_shapes(f"{prefix}.norm2", "rms_norm", width)
        shapes |= linear_shapes(f"{prefix}.mlp.gate_up", 2 * inner, width, False)
        shapes |= linear_shapes(f"{prefix}.mlp.down", width, inner, False)
    shapes |= norm_shapes("language.final_norm", "rms_norm", width)
    return shapes if c["tied"] else shapes | {"language.head.weight": (c["vocabulary"], width)}


def pair_shapes(prefix: str, shared: int, image_width: int, text_width: int, bias: bool) -> Shapes:
    shapes: Shapes = {
        f"{prefix}.image_projection": (shared, image_width),
        f"{prefix}.text_projection": (shared, text_width),
        f"{prefix}.log_scale": (1,),
    }
    return shapes | {f"{prefix}.bias": (1,)} if bias else shapes


def draw_parameters(golden: Golden, shapes: Shapes) -> Values:
    """Random everywhere (norm weights near 1, biases not 0), so that no term of a gradient hides."""
    parameters = {}
    for name, shape in shapes.items():
        if name.endswith("log_scale"):
            parameter = golden.normal(1, scale=0.1, offset=1.5)
        elif name in ("contrastive.bias",):
            parameter = golden.normal(1, scale=0.1, offset=-2.0)
        elif "norm" in name and name.endswith("weight"):
            parameter = golden.normal(*shape, scale=0.2, offset=1.0)
        elif "layer_scale" in name:
            parameter = golden.normal(*shape, scale=0.2, offset=0.7)
        elif len(shape) == 1:
            parameter = golden.normal(*shape, scale=0.2)
        else:
            parameter = golden.normal(*shape, scale=0.5 if "embedding" in name else 1.2 * shape[1] ** -0.5)
        golden.store_exact(f"parameter.{name}", parameter)
        parameters[name] = parameter.requires_grad_()
    return parameters


def norm(p: Values, prefix: str, x: Tensor, kind: str, eps: float) -> Tensor:
    weight = p[f"{prefix}.weight"]
    if kind == "layer_norm":
        return F.layer_norm(x, weight.shape, weight, p[f"{prefix}.bias"], eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def linear(p: Values, prefix: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{prefix}.weight"], p.get(f"{prefix}.bias"))


def encoder_block(p: Values, prefix: str, x: Tensor, c: dict, is_causal: bool) -> Tensor:
    batch, tokens, width = x.shape
    y = linear(p, f"{prefix}.attention.qkv", norm(p, f"{prefix}.norm1", x, c["norm"], c["norm_eps"]))
    query, key, value = y.view(batch, tokens, 3, c["heads"], -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2)
    y = linear(p, f"{prefix}.attention.out", y.reshape(batch, tokens, width))
    x = x + (y * p[f"{prefix}.layer_scale1"] if c["layer_scale"] else y)
    y = norm(p, f"{prefix}.norm2", x, c["norm"], c["norm_eps"])
    if c["mlp"] == "swiglu":
        gate, up = linear(p, f"{prefix}.mlp.gate_up", y).chunk(2, dim=-1)
        y = linear(p, f"{prefix}.mlp.down", F.silu(gate) * up)
    else:
        y = linear(p, f"{prefix}.mlp.fc2", activate(linear(p, f"{prefix}.mlp.fc1", y), c["activation"]))
    return x + (y * p[f"{prefix}.layer_scale2"] if c["layer_scale"] else y)


def vision_tower(p: Values, c: dict, images: Tensor, values: Values) -> Tensor:
    """Images [B,3,S,S] to features [B,T,C], the class token first where there is one."""
    patch = c["patch_size"]
    kernel = p["vision.patch_embed.weight"].view(c["width"], 3, patch, patch)
    x = F.conv2d(images, kernel, p.get("vision.patch_embed.bias"), stride=patch).flatten(2).transpose(1, 2)
    if c["patch_norm"]:
        x = norm(p, "vision.patch_norm", x, "rms_norm", c["norm_eps"])
    if c["class_token"]:
        x = torch.cat([p["vision.class_token"].expand(x.shape[0], 1, -1), x], dim=1)
    x = x + p["vision.position"]
    values["vision.patches"] = x
    if c["pre_norm"]:
        x = norm(p, "vision.pre_norm", x, c["norm"], c["norm_eps"])
    for layer in range(c["layers"]):
        x = encoder_block(p, f"vision.blocks.{layer}", x, c, is_causal=False)
        values[f"vision.blocks.{layer}"] = x
    x = norm(p, "vision.final_norm", x, c["norm"], c["norm_eps"]) if c["final_norm"] else x
    values["vision.features"] = x
    return x


def text_tower(p: Values, c: dict, captions: Tensor, caption_end: Tensor, values: Values) -> Tensor:
    """Captions [B,T] to the feature [B,C] of the token at caption_end [B]."""
    x = F.embedding(captions, p["text.embedding"]) + p["text.position"][: captions.shape[1]]
    for layer in range(c["layers"]):
        x = encoder_block(p, f"text.blocks.{layer}", x, c, is_causal=True)
        values[f"text.blocks.{layer}"] = x
    x = norm(p, "text.final_norm", x, c["norm"], c["norm_eps"])
    values["text.hidden"] = x
    return x[torch.arange(x.shape[0]), caption_end]


def connector(p: Values, features: Tensor, values: Values) -> Tensor:
    """Patch features [B,T,C] on a square grid to visual tokens [B,T/4,D]."""
    side = math.isqrt(features.shape[1])
    x = unshuffle(features.unflatten(1, (side, side))).flatten(1, 2)
    x = norm(p, "connector.norm", x, "layer_norm", 1e-5)
    x = linear(p, "connector.fc2", F.gelu(linear(p, "connector.fc1", x)))
    values["connector.output"] = x
    return x


def decoder(p: Values, c: dict, x: Tensor, seen: Tensor, positions: Tensor, values: Values, name: str) -> Tensor:
    """Input rows [B,T,D] to hidden rows after the final norm; `name` prefixes the intermediates."""
    batch, tokens, _ = x.shape
    heads, kv_heads, dim, eps = c["heads"], c["kv_heads"], c["head_dim"], c["norm_eps"]
    angles = positions.double()[..., None] * inverse_frequencies(c["rope_theta"], dim)
    values[f"{name}.inputs"] = x
    for layer in range(c["layers"]):
        prefix = f"language.blocks.{layer}"
        y = linear(p, f"{prefix}.attention.qkv", norm(p, f"{prefix}.norm1", x, "rms_norm", eps))
        query, key, value = y.unflatten(-1, (-1, dim)).split([heads, kv_heads, kv_heads], dim=2)
        if c["qk_norm"]:
            query = norm(p, f"{prefix}.attention.q_norm", query, "rms_norm", eps)
            key = norm(p, f"{prefix}.attention.k_norm", key, "rms_norm", eps)
        query, key = rotate_half(query, angles), rotate_half(key, angles)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
        x = x + linear(p, f"{prefix}.attention.out", y.transpose(1, 2).reshape(batch, tokens, heads * dim))
        y = norm(p, f"{prefix}.norm2", x, "rms_norm", eps)
        gate, up = linear(p, f"{prefix}.mlp.gate_up", y).chunk(2, dim=-1)
        x = x + linear(p, f"{prefix}.mlp.down", F.silu(gate) * up)
        values[f"{name}.blocks.{layer}"] = x
    x = norm(p, "language.final_norm", x, "rms_norm", eps)
    values[f"{name}.hidden"] = x
    return x


def causal(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The causal mask [B,1,T,T] and positions [B,T] of unpacked rows."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return seen.expand(batch, 1, tokens, tokens), torch.arange(tokens).expand(batch, tokens)


def head_loss(p: Values, c: dict, hidden: Tensor, targets: Tensor, samples: Tensor, weighting: str) -> Tensor:
    weight = p["language.embedding"] if c["tied"] else p["language.head.weight"]
    return next_token_loss(hidden.flatten(0, 1), weight, targets.flatten(), samples.flatten(), weighting)


def finish(golden: Golden, parameters: Values, loss: Tensor, values: Values) -> Golden:
    """Stores the loss, the intermediates and every parameter's gradient."""
    loss.backward()
    golden.store_result("loss", loss)
    for name, tensor in values.items():
        golden.store_result(f"value.{name}", tensor, np.float32)
    for name, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        golden.store_result(f"gradient.{name}", gradient, np.float32)
    return golden


def keep(golden: Golden, name: str, tensor: Tensor) -> Tensor:
    """Stores one of the model's inputs."""
    golden.store_exact(f"input.{name}", tensor)
    return tensor


def vision_model(form: str, c: dict, batch: int) -> Golden:
    """One vision tower; loss = sum over `input.cotangent` [B,T,C] times the features."""
    golden = Golden(f"model_vision_{form}", {"model": "vision", "vision": c})
    parameters, values = draw_parameters(golden, vision_shapes(c)), {}
    images = keep(golden, "images", golden.normal(batch, 3, c["image_size"], c["image_size"]))
    features = vision_tower(parameters, c, images, values)
    cotangent = keep(golden, "cotangent", golden.normal(*features.shape))
    return finish(golden, parameters, (cotangent * features).sum(), values)


def decoder_model(form: str, c: dict, weighting: str, lengths: list[list[int]]) -> Golden:
    """One decoder with the next-token loss. Rows of `lengths` are the lengths of the samples packed into each row; a
    token sees only its own sample and positions restart with it. The last token of a sample predicts nothing."""
    golden = Golden(f"model_decoder_{form}", {"model": "decoder", "language": c, "weighting": weighting})
    parameters, values = draw_parameters(golden, language_shapes(c)), {}
    batch, tokens = len(lengths), sum(lengths[0])
    samples, positions, last = torch.zeros(3, batch, tokens, dtype=torch.int64)
    sample = 0
    for row, parts in enumerate(lengths):
        start = 0
        for part in parts:
            samples[row, start : start + part] = sample
            positions[row, start : start + part] = torch.arange(part)
            last[row, start + part - 1] = 1
            start, sample = start + part, sample + 1
    ids = keep(golden, "tokens", golden.integers(batch, tokens, low=0, high=c["vocabulary"]))
    targets = ids.roll(-1, 1).masked_fill(last == 1, -100)
    targets[:, :2] = -100
    keep(golden, "targets", targets)
    keep(golden, "samples", samples)
    keep(golden, "positions", positions)
    seen = causal(batch, tokens)[0] & (samples[:, None, :, None] == samples[:, None, None, :])
    rows = F.embedding(ids, parameters["language.embedding"])
    hidden = decoder(parameters, c, rows, seen, positions, values, "language")
    return finish(golden, parameters, head_loss(parameters, c, hidden, targets, samples, weighting), values)


def three_part_model(name: str, contrastive_weight: float, align: str = "hidden") -> Golden:
    """Vision tower, connector and decoder with the next-token loss on `targets` [B,T], and in stage II plus
    contrastive_weight times InfoNCE of the mean visual token against the weighted mean of the caption's hidden rows, or,
    where align is "embeddings", of the mean direction of visual tokens against that of the caption's embeddings.

    `tokens` [B,T] hold the image token where a visual token goes; `slots` [B,T] say which row of the flattened
    connector output [B·Ti,D] goes there, or -1. Everything gets its gradient here; a stage that freezes a part owes
    only the others.
    """
    vision = SAILVIT | {"image_size": 16}
    language = QWEN25 | {"mlp_width": 24}
    weighting, image_token, batch, tokens, visual = "square", 3, 3, 14, 4
    golden = Golden(
        f"model_{name}",
        {
            "model": "three_part", "vision": vision, "language": language, "connector": {"norm_eps": 1e-5},
            "weighting": weighting, "image_token": image_token, "contrastive_weight": contrastive_weight,
            "align": align,
        },
    )  # fmt: skip
    shapes = vision_shapes(vision) | connector_shapes(vision["width"], language["width"]) | language_shapes(language)
    if contrastive_weight:
        pair = pair_shapes("align", 24, language["width"], language["width"], False)
        kept = pair if align == "hidden" else {"align.log_scale": pair["align.log_scale"]}
        shapes |= kept
    parameters, values = draw_parameters(golden, shapes), {}

    images = keep(golden, "images", golden.normal(batch, 3, 16, 16))
    ids = golden.integers(batch, tokens, low=4, high=language["vocabulary"])
    slots = torch.full((batch, tokens), -1)
    slots[:, 1 : 1 + visual] = torch.arange(batch * visual).view(batch, visual)
    ids[slots >= 0] = image_token
    ends = torch.tensor([tokens, tokens - 4, tokens - 7])
    targets = ids.roll(-1, 1)
    targets[:, :visual] = -100
    targets[torch.arange(tokens)[None] >= ends[:, None] - 1] = -100
    samples = torch.arange(batch)[:, None].expand(batch, tokens)
    for key, tensor in [("tokens", ids), ("slots", slots), ("targets", targets)]:
        keep(golden, key, tensor)

    features = vision_tower(parameters, vision, images, values)
    bridged = connector(parameters, features, values)
    rows = F.embedding(ids, parameters["language.embedding"])
    rows = torch.where((slots >= 0)[..., None], bridged.flatten(0, 1)[slots.clamp(min=0)], rows)
    hidden = decoder(parameters, language, rows, *causal(batch, tokens), values, "language")
    loss = head_loss(parameters, language, hidden, targets, samples, weighting)
    if not contrastive_weight:
        return finish(golden, parameters, loss, values)

    golden.store_result("value.next_token_loss", loss)
    captions = keep(golden, "caption_tokens", golden.integers(batch, 7, low=4, high=language["vocabulary"]))
    weights = keep(golden, "caption_weights", (torch.arange(7)[None] < torch.tensor([[7], [3], [5]])).double())
    rows = F.embedding(captions, parameters["language.embedding"])
    if align == "embeddings":
        image = F.normalize(bridged, dim=-1).mean(1)
        text = (weights[..., None] * F.normalize(rows, dim=-1)).sum(1) / weights.sum(1, keepdim=True)
        values |= {"align.image_feature": image, "align.text_feature": text}
        pair = contrastive_loss(image, text, parameters["align.log_scale"], None)
        golden.store_result("value.contrastive_loss", pair)
        return finish(golden, parameters, loss + contrastive_weight * pair, values)
    caption = decoder(parameters, language, rows, *causal(batch, 7), values, "caption")
    text = (weights[..., None] * caption).sum(1) / weights.sum(1, keepdim=True)
    image = F.linear(bridged.mean(1), parameters["align.image_projection"])
    text = F.linear(text, parameters["align.text_projection"])
    values |= {"align.image_feature": image, "align.text_feature": text}
    pair = contrastive_loss(image, text, parameters["align.log_scale"], None)
    golden.store_result("value.contrastive_loss", pair)
    return finish(golden, parameters, loss + contrastive_weight * pair, values)


def contrastive_model(kind: str, vision: dict) -> Golden:
    """Vision tower against text tower. The image feature is the mean over patch tokens, or the class token."""
    golden = Golden(f"model_contrastive_{kind}", {"model": "contrastive", "vision": vision, "text": TEXT, "kind": kind})
    batch, tokens = 5, TEXT["context"]
    shapes = vision_shapes(vision) | text_shapes(TEXT)
    shapes |= pair_shapes("contrastive", 24, vision["width"], TEXT["width"], kind == "sigmoid")
    parameters, values = draw_parameters(golden, shapes), {}
    images = keep(golden, "images", golden.normal(batch, 3, vision["image_size"], vision["image_size"]))
    captions = keep(golden, "captions", golden.integers(batch, tokens, low=0, high=TEXT["vocabulary"]))
    ends = keep(golden, "caption_end", torch.tensor([8, 3, 0, 6, 8]))
    features = vision_tower(parameters, vision, images, values)
    pooled = features[:, 0] if vision["class_token"] else features.mean(1)
    text = text_tower(parameters, TEXT, captions, ends, values)
    image = F.linear(pooled, parameters["contrastive.image_projection"])
    text = F.linear(text, parameters["contrastive.text_projection"])
    values |= {"contrastive.image_feature": image, "contrastive.text_feature": text}
    scale, bias = parameters["contrastive.log_scale"], parameters.get("contrastive.bias")
    return finish(golden, parameters, contrastive_loss(image, text, scale, bias), values)


MODELS = [
    lambda: vision_model("sailvit", SAILVIT, 2),
    lambda: vision_model("clip", CLIP, 3),
    lambda: vision_model("internvit", INTERNVIT, 2),
    lambda: vision_model("siglip", SIGLIP, 3),
    lambda: decoder_model("qwen25", QWEN25, "token", [[13], [13]]),
    lambda: decoder_model("qwen3", QWEN3, "square", [[11], [11], [11]]),
    lambda: decoder_model("packed", QWEN3 | {"layers": 1}, "sample", [[7, 4, 6], [5, 12]]),
    lambda: three_part_model("stage_three", 0.0),
    lambda: three_part_model("stage_two", 0.3),
    lambda: three_part_model("stage_two_directions", 0.3, "embeddings"),
    lambda: contrastive_model("infonce", CLIP),
    lambda: contrastive_model("sigmoid", SIGLIP),
]
