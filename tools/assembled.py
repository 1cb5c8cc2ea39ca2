"""A whole model that `keel export --part model` wrote, put together from transformers' own towers and decoders.

The folder says everything: the tower's and decoder's settings, the chat's layout, how images are prepared and cut into
tiles. No modelling code of anybody's but transformers' is run.
"""

import json
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from golden_chat import HERMES_SYSTEM, INTERNVL_SYSTEM

LLAMA31_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

# By the name in config.json: what the system says, what follows a turn, and what opens the answer.
CHATS = {
    "qwen2": ("You are a helpful assistant.", "\n", ""),
    "qwen2.5": ("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "\n", ""),
    "qwen3": (None, "\n", "<think>\n\n</think>\n\n"),
    "chatml": (None, "\n", ""),
    "Hermes-2": (HERMES_SYSTEM, "", ""),
    "internvl2_5": (INTERNVL_SYSTEM, "\n", ""),
    "sailvl-chat": (None, "", ""),
    "smollm2": ("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "\n", ""),
    "llama3": (None, "", ""),
    "llama3.1": (LLAMA31_SYSTEM, "", ""),
}
# What opens a text, a turn and the turn's own words, and what ends a turn.
CHATML = ("", "<|im_start|>", "\n", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")


def loaded(kind, *where, **more):
    """What `from_pretrained` loads; refused unless all of its numbers are there and used."""
    model, loading = kind.from_pretrained(*where, output_loading_info=True, **more)
    if odd := {what: names for what, names in loading.items() if names}:
        raise SystemExit(f"transformers loads {kind.__name__} with {odd}")
    return model.eval()


def part(kind, settings: dict, tensors: dict, prefix: str):
    """The part of a model whose tensors begin with `prefix`."""
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        config = AutoConfig.for_model(**settings)
    except ValueError:
        raise SystemExit(
            f"transformers has no {settings.get('model_type')}: export in another --layout, or run the publishers' own code"
        ) from None
    dtype = next(iter(inner.values())).dtype
    # The class that transformers has for these settings.
    with torch.device("meta"):
        kind = type(kind.from_config(config))
    return loaded(kind, None, config=config, state_dict=inner, dtype=dtype)


class Assembled:
    """Answers questions about images, greedily."""

    def __init__(self, folder: Path, device: str = "cpu"):
        if not (folder / "tokenizer.json").exists():
            raise SystemExit(f"{folder} has no tokenizer.json: a model that speaks Keel's own is asked by keel eval --bench")
        config = json.loads((folder / "config.json").read_text())
        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file, device=device)
        self.device = device
        self.tower = part(AutoModel, config["vision_config"], tensors, "vision_model.").to(device)
        self.decoder = part(AutoModelForCausalLM, config["llm_config"], tensors, "language_model.").to(device)
        self.connector = [tensors[f"mlp1.{at}.{what}"] for at in (0, 1, 3) for what in ("weight", "bias")]
        self.words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self.system, self.between, self.before_answer = CHATS[config["template"]]
        self.trims = config["template"].startswith("llama3")
        self.frame = LLAMA3 if self.trims else CHATML
        self.image_id, self.end = self.words.convert_tokens_to_ids(["<IMG_CONTEXT>", self.frame[3]])
        self.factor = round(1 / config["downsample_ratio"])
        self.side = config["force_image_size"]
        patch = config["vision_config"]["patch_size"]
        self.grid = self.side // (patch[0] if isinstance(patch, list) else patch)
        self.most_tiles = config["max_dynamic_patch"] if config["dynamic_image_size"] else 1
        self.prepared = json.loads((folder / "preprocessor_config.json").read_text())
        self.tiler = GotOcr2ImageProcessorPil()

    def whole(self, picture: Image.Image) -> numpy.ndarray:
        """An image at the tower's size: its shorter edge scaled and the middle cut out, or, as tiles are, stretched to it."""
        size, resample = self.prepared["size"], self.prepared["resample"]
        if self.most_tiles > 1 or "shortest_edge" not in size:
            return numpy.array(picture.resize((self.side, self.side), resample=resample))
        short = min(picture.size)
        scaled = picture.resize([int(size["shortest_edge"] * edge / short) for edge in picture.size], resample=resample)
        left, top = ((edge - self.side) // 2 for edge in scaled.size)
        return numpy.array(scaled.crop((left, top, left + self.side, top + self.side)))

    def squares(self, pictures: list[Image.Image]) -> list[numpy.ndarray]:
        """One image in tiles with the whole of it behind them, where the model has seen tiles; several each whole."""
        if len(pictures) != 1 or self.most_tiles < 2:
            return [self.whole(picture) for picture in pictures]
        size = SizeDict(height=self.side, width=self.side)
        return self.tiler.crop_image_to_patches(
            numpy.array(pictures[0]), 1, self.most_tiles, use_thumbnail=True, patch_size=size,
            resample=self.prepared["resample"],
        )

    def image_tokens(self, squares: list[numpy.ndarray]) -> torch.Tensor:
        """What stands for the images in the language model's input [N·Ti, H]."""
        mean, deviation = (torch.tensor(self.prepared[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(numpy.stack(squares)).permute(0, 3, 1, 2) / 255.0
        pixels = ((pixels - mean) / deviation).to(self.device, self.tower.dtype)
        # A class token stands before the patches.
        features = self.tower(pixels).last_hidden_state[:, -self.grid**2 :]
        count, width, side = len(squares), features.shape[-1], self.grid // self.factor
        wide = self.factor**2 * width
        blocks = features.view(count, side, self.factor, side, self.factor, width)
        x = blocks.permute(0, 1, 3, 2, 4, 5).reshape(-1, wide)
        norm_weight, norm_bias, first_weight, first_bias, second_weight, second_bias = self.connector
        x = torch.nn.functional.layer_norm(x, [wide], norm_weight, norm_bias, 1e-5)
        x = torch.nn.functional.gelu(x @ first_weight.T + first_bias)
        return x @ second_weight.T + second_bias

    def prompt(self, question: str, squares: int, pictures: int) -> list[int]:
        """The ids up to the answer. Of several images each stands at its `<image>`, or all before the question."""
        one = "<IMG_CONTEXT>" * (self.grid // self.factor) ** 2
        if pictures == 1:
            question = f"<img>{one * squares}</img>\n{question.replace('<image>', '')}"
        elif "<image>" not in question:
            question = "<image>\n" * pictures + question
        question = question.replace("<image>", f"<img>{one}</img>")
        begin, opening, words, closing = self.frame
        question = question.strip() if self.trims else question
        system = f"{opening}system{words}{self.system}{closing}{self.between}" if self.system else ""
        asked = f"{opening}user{words}{question}{closing}{self.between}"
        text = f"{begin}{system}{asked}{opening}assistant{words}{self.before_answer}"
        return self.words.encode(text, add_special_tokens=False)

    @torch.no_grad()
    def answer(self, pictures: list[Image.Image], question: str, most: int) -> tuple[str, bool]:
        """The answer in at most `most` tokens, and whether it came to its end."""
        squares = self.squares([picture.convert("RGB") for picture in pictures])
        ids = torch.tensor(self.prompt(question, len(squares), len(pictures)), device=self.device)
        embedded = self.decoder.get_input_embeddings()(ids)
        if squares:
            embedded[ids == self.image_id] = self.image_tokens(squares).to(embedded.dtype)
        answer = self.decoder.generate(
            inputs_embeds=embedded[None], attention_mask=torch.ones_like(ids)[None], do_sample=False, num_beams=1,
            max_new_tokens=most, eos_token_id=self.end, pad_token_id=self.end,
        )[0].tolist()
        return self.words.decode(answer, skip_special_tokens=True), answer[-1] == self.end
