"""Goldens of tokenizers and chat layouts: verify/goldens/chat.

    python -m pip install transformers jinja2
    python tools/golden_chat.py

A small byte-level tokenizer in Qwen's form (its pre-tokenizer, its control tokens) is trained from a few lines, and the
transformers library lays conversations out with the chat templates of Qwen2, Qwen2.5, Qwen3 and SmolLM2, reduced to what
conversations without tools use. The same tokenizer with Llama 3's control tokens is laid out with the templates of Llama 3 and 3.1
and kept in llama3.json beside it. InternVL's layout is written as its training code does: each turn a string that is tokenised alone.
Each case holds text, ids, and which of the ids are supervised.
"""

import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "verify" / "goldens" / "chat"
TEMPLATES = OUT / "templates"

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = [
    "What is this? A red fox on a blue background, seen from the left.",
    "How many apples are there? There are three apples and one pear.",
    "system You are a helpful assistant. user assistant",
    "Describe the picture in one sentence: a cat sleeps beside a window.",
    "图片里有什么？一只红色的狐狸。",
    "def f(x):\n    return x + 1\n\nprint(f(41))",
]

# The parts of Qwen's published templates that conversations of text go through.
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (TEMPLATES / "llama3.jinja").read_text()
LLAMA31 = (TEMPLATES / "llama3.1.jinja").read_text()
HERMES_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)

IMAGE_TOKENS = 3
CONVERSATIONS = [
    {"image": True, "turns": [["What is this?", "A red fox."]]},
    {"image": True, "turns": [["", "a cat beside a window"]]},
    {
        "image": True,
        "turns": [["How many apples?", "3"], ["  And pears?\n", "1\n\nno more"], ["颜色？", "红色的。"]],
    },
    {
        "image": True, "marked": True,
        "turns": [["Image-1: <image>\nImage-2: <image>\nWhich is red?", "The first."], ["And in <image>?", "Neither."]],
    },
    {"image": False, "turns": [["def f(x):\n    return", " x + 1"]]},
    {"image": False, "turns": [["It's late; we'll go?", "They've gone, I'm sure."], ["12345", "e\u0301 é 🦊"]]},
]


CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_CONTROL = ["<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "<|end_header_id|>"]


def tokenizer(control: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in control]
    )
    made.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", "<think>", "</think>")]
    )
    return made


def picture(question: str, conversation: dict, index: int) -> str:
    """A question with the tokens of its images: at its marks, or before the first question."""
    tokens = "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>"
    if conversation.get("marked"):
        return question.replace("<image>", tokens)
    return (tokens + "\n" if conversation["image"] and index == 0 else "") + question


def by_template(
    fast, template: str, conversation: dict, header: str = "<|im_start|>assistant\n", close: str = "<|im_end|>"
) -> dict:
    messages = []
    closing = fast.convert_tokens_to_ids(close)
    ids = lambda messages, **more: fast.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=False, **more
    )
    for index, (question, answer) in enumerate(conversation["turns"]):
        messages.append({"role": "user", "content": picture(question, conversation, index)})
        messages.append({"role": "assistant", "content": answer})
    whole = ids(messages)
    spans, at = [], 0
    # The assistant's turns in order; what opens the last may differ from what opens the others.
    opening = fast.encode(header, add_special_tokens=False)
    thinking = fast.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    for index in range(len(conversation["turns"])):
        while whole[at : at + len(opening)] != opening:
            at += 1
        at += len(opening)
        if whole[at : at + len(thinking)] == thinking:
            at += len(thinking)
        end = whole.index(closing, at) + 1
        spans.append([at, end])
        at = end
    prompt = ids(messages[:1], add_generation_prompt=True)
    return {"ids": whole, "supervised": spans, "prompt": prompt}


def internvl(fast, conversation: dict, system: str | None, between: str) -> dict:
    encode = lambda text: fast.encode(text, add_special_tokens=False)
    whole, spans = [], []
    if system:
        whole += encode(f"<|im_start|>system\n{system}<|im_end|>{between}")
    prompt = []
    for index, (question, answer) in enumerate(conversation["turns"]):
        asked = picture(question, conversation, index)
        whole += encode(f"<|im_start|>user\n{asked}<|im_end|>{between}")
        opening = encode("<|im_start|>assistant\n")
        if index == 0:
            prompt = whole + opening
        turn = encode(f"<|im_start|>assistant\n{answer}<|im_end|>{between}")
        assert turn[: len(opening)] == opening
        spans.append([len(whole) + len(opening), len(whole) + len(turn) - (1 if between else 0)])
        whole += turn
    return {"ids": whole, "supervised": spans, "prompt": prompt}


def opened(control: list[str], file: str):
    """The tokenizer, saved as `file`, with what Keel adds for images, in its order; and how many ids it had before."""
    made = tokenizer(control)
    made.save(str(OUT / file))
    size = made.get_vocab_size(with_added_tokens=True)
    made.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<img>", "<IMG_CONTEXT>", "</img>")]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin_of_text|>"), size


def llama(fast, template: str, conversation: dict) -> dict:
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    return by_template(fast, template, conversation, header, "<|eot_id|>")


def write(file: str, fast, file_size: int, cases: list[dict]) -> None:
    golden = {
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "file_size": file_size,
        "image_tokens": IMAGE_TOKENS,
        "image": fast.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "texts": [{"text": text, "ids": fast.encode(text, add_special_tokens=False)} for text in CORPUS],
        "cases": cases,
    }
    (OUT / file).write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    fast, size = opened(CONTROL, "tokenizer.json")
    cases = [
        {
            **conversation,
            "qwen2": by_template(fast, QWEN2, conversation),
            "qwen2.5": by_template(fast, QWEN25, conversation),
            "qwen3": by_template(fast, QWEN3, conversation),
            "chatml": by_template(fast, CHATML, conversation),
            "smollm2": by_template(fast, SMOLLM2, conversation),
            "hermes-2": internvl(fast, conversation, HERMES_SYSTEM, ""),
            "internvl2.5": internvl(fast, conversation, INTERNVL_SYSTEM, "\n"),
            "sailvl": internvl(fast, conversation, None, ""),
        }
        for conversation in CONVERSATIONS
    ]
    write("chats.json", fast, size, cases)
    fast, size = opened(LLAMA_CONTROL, "llama3-tokenizer.json")
    cases = [
        {**conversation, "llama3": llama(fast, LLAMA3, conversation), "llama3.1": llama(fast, LLAMA31, conversation)}
        for conversation in CONVERSATIONS
    ]
    write("llama3.json", fast, size, cases)


if __name__ == "__main__":
    main()
