"""Writes a small corpus for each target into corpus/: what the tests read, and built-in recipes. Needs safetensors."""

import base64
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent
REPO = ROOT.parent


def seed(target: str, name: str, content: bytes) -> None:
    folder = ROOT / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def tensors_of(path: pathlib.Path) -> dict[str, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    header.pop("__metadata__", None)
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def main() -> None:
    for path in [REPO / "verify/goldens/pictures.safetensors", REPO / "verify/goldens/frames.safetensors"]:
        for name, content in tensors_of(path).items():
            if name.startswith("file."):
                seed("images", name, content)
    for path in (REPO / "recipes").glob("*.toml"):
        seed("recipes", path.name, path.read_bytes())
    seed("tokenizers", "tokenizer.json", (REPO / "verify/goldens/chat/tokenizer.json").read_bytes())
    for path in (REPO / "verify/goldens/parquet").glob("*.parquet"):
        seed("parquet", path.name, path.read_bytes())
    pair = {"image": "a.png", "caption": "a fox"}
    talk = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a fox"}]}
    seed("records", "list.json", b"\0" + json.dumps([pair, talk]).encode())
    seed("records", "lines.jsonl", b"\1" + json.dumps(pair).encode() + b"\n" + json.dumps(talk).encode())
    seed("records", "table.tsv", b"\2image\tquestion\tanswer\na.png\twhat?\ta fox\n")
    seed("records", "table.csv", b"\3image,caption\na.png,\"a \"\"red\"\" fox\"\n")
    said = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}]
    said += [{"role": "assistant", "content": "a fox", "weight": 0}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "b", "loss": True}]
    asked = {"image": "a.png", "question": "what?", "answers": [{"answer": "a fox"}, {"answer": "a dog"}], "caption": None}
    seed("records", "messages.json", b"\0" + json.dumps([{"system": "Be brief.", "messages": said}, asked]).encode())
    sets = {"a": {"root": ".", "annotation": "input.json", "repeat_time": 0.5, "length": 3, "data_augment": False, "max_dynamic_patch": 2}}
    seed("records", "mixture.json", b"\0" + json.dumps(sets).encode())
    seed("records", "captions.txt", b'\4image,caption\na.png,"a ""red"" fox"\na.png\ta fox\n')
    seed("records", "metadata.csv", b"\5file_name;text\na.png;a fox\n")
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    config = json.dumps({"model_type": "siglip_vision_model", "hidden_size": 8, "num_hidden_layers": 1}).encode()
    seed("weights", "siglip", config + b"\0" + struct.pack("<Q", len(header)) + header + bytes(16))
    name = b"a.txt".ljust(100, b"\0")
    block = bytearray(name + b"0000644\0" + b"0000000\0" * 2 + b"00000000005\0" + b"00000000000\0" + b" " * 8 + b"0")
    block += bytes(512 - len(block))
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    seed("archives", "one.tar", bytes(block) + b"words".ljust(512, b"\0") + bytes(1024))
    heading = "index\timage\tquestion\tA\tB\tanswer\tcategory\n"
    seed("benchmarks", "small.tsv", (heading + "1\t" + "QUJD" * 20 + "\twhat?\tcat\tdog\tB\tx\n2\t1\tis it?\t\t\tYes\t\n").encode())
    files = tensors_of(REPO / "verify/goldens/pictures.safetensors")
    smallest = sorted((content for name, content in files.items() if name.startswith("file.")), key=len)[:3]
    urls = [f"data:image/png;base64,{base64.b64encode(content).decode()}" for content in smallest]
    shown = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    words = {"type": "text", "text": "what?"}
    user = [{"role": "user", "content": content} for content in ("what?", [shown[0], words], [shown[1], words, shown[2]], [*shown[:2], {"type": "text", "text": "<image> <image>"}])]
    system, said = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "a fox"}
    drawn = {"temperature": 0.7, "top_p": 0.9, "seed": -3, "stop": ["END", "."], "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}
    for number, messages in enumerate([[user[0]], [system, user[1], said, user[0]], [user[2]], [user[3]], [user[0], said, user[1]]]):
        seed("requests", f"chat-{number}.json", json.dumps({"model": "fuzzed", "messages": messages} | (drawn if number % 2 else {})).encode())


if __name__ == "__main__":
    main()
