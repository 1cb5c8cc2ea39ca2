"""Makes verify/goldens/parquet: files as datasets and pyarrow write them, and what pyarrow reads from them.

    python -m pip install pyarrow pillow
    python tools/golden_parquet.py

expected.json holds for every file the pairs in order: words, and the colour of the image's first pixel.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "verify/goldens/parquet"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def colour(index: int) -> tuple[int, int, int]:
    return (index * 7 % 256, index * 13 % 256, 255 - index * 3 % 256)


def picture(index: int) -> dict:
    """As datasets stores an Image: the file, and the name it once had."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour(index)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{index}.png"}


def turns(index: int) -> int:
    return 1 + index % 3


def pair(index: int, seen: bool = True, system: str | None = None) -> dict:
    """What the conversation of this index says."""
    asked = [{"question": f"what is {index}.{turn}?", "answer": f"näme {index}.{turn}"} for turn in range(turns(index))]
    return {
        "prompt": asked[0]["question"], "caption": asked[0]["answer"], "further": asked[1:], "system": system,
        "colour": list(colour(index)) if seen else None,
    }


def captioned(index: int) -> dict:
    return {"prompt": None, "caption": f"number {index}", "further": [], "system": None, "colour": list(colour(index))}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    expected = {}

    def write(name: str, table: pa.Table, pairs: list, **options) -> None:
        pq.write_table(table, FOLDER / f"{name}.parquet", **options)
        assert pq.read_table(FOLDER / f"{name}.parquet").equals(table)
        expected[name] = pairs

    # Captions, in groups of seven rows, pages of a few values: rows are found across groups, pages and dictionaries.
    count = range(40)
    columns = {
        "id": pa.array(count, pa.int64()),
        "image": pa.array([picture(i) for i in count], IMAGE),
        "text": [f"number {i}" for i in count],
    }
    small = {"row_group_size": 7, "data_page_size": 64, "write_batch_size": 2}
    write("captions", pa.table(columns), [captioned(i) for i in count], **small)
    plain = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "write_page_index": True}
    write("captions-v2", pa.table(columns), [captioned(i) for i in count], **small | plain)
    for packing in ("zstd", "lz4"):
        write(f"captions-{packing}", pa.table(columns), [captioned(i) for i in count], **small, compression=packing)

    # LLaVA's conversations beside a list of images; every fifth is text alone.
    def conversation(i: int) -> list:
        said = []
        for turn in range(turns(i)):
            mark = "<image>\n" if turn == 0 and i % 5 else ""
            said.append({"from": "human", "value": f"{mark}what is {i}.{turn}?"})
            said.append({"from": "gpt", "value": f"näme {i}.{turn}"})
        return said

    count = range(23)
    table = pa.table({
        "images": pa.array([[picture(i)] if i % 5 else [] for i in count], pa.list_(IMAGE)),
        "conversations": [conversation(i) for i in count],
    })
    pairs = [pair(i, i % 5 != 0) for i in count]
    write("conversations", table, pairs, row_group_size=10, compression="gzip", data_page_size=100, write_batch_size=3)
    write("conversations-v2", table, pairs, row_group_size=10, data_page_version="2.0", data_page_size=100, write_batch_size=3)

    # Messages whose contents are lists themselves.
    def messages(i: int) -> list:
        said = [{"role": "system", "content": [{"index": None, "text": "Be brief.", "type": "text"}]}]
        for turn in range(turns(i)):
            parts = [{"index": None, "text": f"what is {i}.{turn}?", "type": "text"}]
            if turn == 0:
                parts.insert(0, {"index": 0, "text": None, "type": "image"})
            said.append({"role": "user", "content": parts})
            said.append({"role": "assistant", "content": [{"index": None, "text": f"näme {i}.{turn}", "type": "text"}]})
        return said

    part = pa.struct([("index", pa.int64()), ("text", pa.string()), ("type", pa.string())])
    kind = pa.list_(pa.struct([("content", pa.list_(part)), ("role", pa.string())]))
    table = pa.table({
        "messages": pa.array([messages(i) for i in count], kind),
        "images": pa.array([[picture(i)] for i in count], pa.list_(IMAGE)),
    })
    write("messages", table, [pair(i, system="Be brief.") for i in count], row_group_size=9)

    # The Cauldron's texts.
    def texts(i: int) -> list:
        return [
            {"user": f"what is {i}.{turn}?", "assistant": f"näme {i}.{turn}", "source": "made"} for turn in range(turns(i))
        ]

    table = pa.table({
        "images": pa.array([[picture(i)] for i in range(6)], pa.list_(IMAGE)), "texts": [texts(i) for i in range(6)],
    })
    write("texts", table, [pair(i) for i in range(6)])

    # What is counted: no image, an empty answer, no words at all; and two images, which are read. And what is refused whole.
    table = pa.table({
        "images": pa.array([[picture(0)], [], [picture(1), picture(2)], None, [picture(3)], [picture(4)]], pa.list_(IMAGE)),
        "question": ["q", "q", "q", "q", "q", "q"],
        "answer": pa.array(["a", "a", "a", "a", " ", None]),
    })
    write("flawed", table, [])
    write("numbers", pa.table({"image": pa.array([picture(0)], IMAGE), "label": [3]}), [])
    write("labels", pa.table({"image": pa.array([picture(0)], IMAGE), "answer": [3]}), [])
    write("brotli", pa.table({"image": pa.array([picture(0)], IMAGE), "text": ["a"]}), [], compression="brotli")
    paths = pa.table({"image": ["a.png", "../b.png", "https://c/d.png"], "caption": ["a", "b", "c"]})
    write("paths", paths, [])
    # Each record uses some of the columns: the others are null.
    told = {"prompt": None, "further": [], "system": None}
    kinds = [
        ({"caption": "a fox"}, {"caption": "a fox"}),
        ({"question": "what?", "answers": ["net", "mesh", "mesh"]}, {"prompt": "what?", "caption": "mesh"}),
        (
            {"question": "which?", "answers": ["x"], "system": "Be brief."},
            {"prompt": "which?", "caption": "x", "system": "Be brief."},
        ),
    ]
    kinds = [kinds[index % 3] for index in range(9)]
    strings = dict.fromkeys(["caption", "question", "system", "tools"], pa.string())
    columns = {**strings, "answers": pa.list_(pa.string())}
    table = pa.table({
        "image": pa.array([picture(index) for index in range(9)], IMAGE),
        **{name: pa.array([row.get(name) for row, _ in kinds], kind) for name, kind in columns.items()},
    })
    pairs = [{**told, **says, "colour": list(colour(index))} for index, (_, says) in enumerate(kinds)]
    write("nulls", table, pairs, row_group_size=4)
    marked = [{"role": "user", "content": "a", "loss": None}, {"role": "assistant", "content": "b", "loss": False}]
    write("learnt", pa.table({"messages": [marked]}), [])
    write("videos", pa.table({"image": pa.array([picture(0)], IMAGE), "videos": [["a.mp4"]], "text": ["a"]}), [])
    versions = {"pyarrow": pa.__version__}
    (FOLDER / "expected.json").write_text(json.dumps({"versions": versions, "pairs": expected}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
