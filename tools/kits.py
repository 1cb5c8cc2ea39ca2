"""Holds what evaluation kits get from `keel serve` to what `keel eval --bench` writes down, answer by answer.

    python tools/kits.py RUN [--bench FILE.tsv] [--keel PROGRAM] [--vlmevalkit CHECKOUT] [--lmms-eval]

The server answers a small benchmark of images that this script draws, or the file that is given (multiple choice, in VLMEvalKit's
layout). Its questions are put

- by OpenAI's Python client, one after the other and as streams (pip install openai);
- with --vlmevalkit, by the run.py of a checkout of VLMEvalKit in its API mode, nothing registered and nothing changed;
- with --lmms-eval, by lmms-eval's command with its OpenAI-compatible model (pip install lmms-eval).

Every answer must be that of `keel eval --bench`, and so must the score. VLMEvalKit sends images as JPEG files of its own making: it is held
to the answers about those.
"""

import argparse
import base64
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

NAME = "kits"
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40)}
OPTIONS = dict(zip("ABCD", COLOURS))
WORDS = "Please select the correct answer from the options above. \n"


def drawn(path: Path) -> None:
    """A benchmark of twelve questions about six images."""
    from PIL import Image, ImageDraw

    rows = []
    for number in range(12):
        colour = list(COLOURS)[number // 2 % 4]
        # No smaller than what VLMEvalKit sends as it is.
        image = Image.new("RGB", (128, 128), (255, 255, 255))
        pen, at = ImageDraw.Draw(image), 30 + 4 * number
        pen.rectangle([at, 40, at + 30, 90], fill=COLOURS[colour])
        file = io.BytesIO()
        image.save(file, "PNG")
        letter = next(letter for letter, text in OPTIONS.items() if text == colour)
        question = ["Which is it?", "What do you see?"][number % 2]
        row = {"index": number, "image": base64.b64encode(file.getvalue()).decode(), "question": question}
        rows.append(row | OPTIONS | {"answer": letter})
    write(path, rows)


def write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict]:
    csv.field_size_limit(1 << 30)
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def asked(row: dict) -> str:
    """A question in VLMEvalKit's words."""
    options = "".join(f"{letter}. {row[letter]}\n" for letter in "ABCD" if row.get(letter))
    hint = f"Hint: {row['hint']}\n" if row.get("hint") else ""
    return f"{hint}Question: {row['question']}\nOptions:\n{options}{WORDS}"


def answered(keel: str, run: Path, bench: Path) -> tuple[dict[str, str], float]:
    """What `keel eval --bench` writes down, by index, and the score."""
    command = [keel, "eval", str(run), "--bench", str(bench), "--wording", "vlmevalkit", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    folder = run if run.is_dir() else run.parent.parent
    kept = max((folder / "evaluations").glob(f"*.{bench.stem}.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    counted = json.loads(done.stdout)["all"]
    return {row["index"]: row["prediction"] for row in rows}, counted["right"] / counted["count"]


@contextmanager
def serving(keel: str, run: Path):
    """A server; its address."""
    command = [keel, "serve", str(run), "--name", NAME, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = ""
        while "a page at " not in line:
            line = server.stdout.readline()
            if not line:
                sys.exit("keel serve did not start")
        yield line.split(" at ")[1].split(",")[0]
    finally:
        server.terminate()
        server.wait()


def same(kit: str, theirs: dict[str, str], ours: dict[str, str]) -> None:
    """Ends with an error where answers differ; kits leave out the white space around them."""
    if theirs.keys() != ours.keys():
        sys.exit(f"{kit}: answers {sorted(theirs)}, and questions {sorted(ours)}")
    wrong = [index for index in ours if theirs[index].strip() != ours[index].strip()]
    for index in wrong:
        print(f"{kit}, question {index}: {theirs[index]!r}, keel eval {ours[index]!r}")
    if wrong:
        sys.exit(f"{kit}: {len(wrong)} of {len(ours)} answers differ from those of keel eval --bench")
    print(f"{kit}: {len(ours)} of {len(ours)} answers are those of keel eval --bench")


def openai_client(address: str, rows: list[dict]) -> dict[str, str]:
    from openai import OpenAI

    client = OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [NAME]
    answers = {}
    for row in rows:
        url = f"data:image/png;base64,{row['image']}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": asked(row)}]
        chat = {"model": NAME, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        whole = client.chat.completions.create(**chat).choices[0].message.content
        pieces = client.chat.completions.create(**chat, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert streamed == whole, f"a stream of {streamed!r}, and an answer of {whole!r}"
        answers[row["index"]] = whole
    return answers


def vlmevalkit(address: str, bench: Path, checkout: Path, folder: Path) -> tuple[dict[str, str], float, Path]:
    """Its answers and score, and the benchmark with the images as it sent them."""
    data, outputs = folder / "LMUData", folder / "outputs"
    data.mkdir()
    (data / f"{NAME}.tsv").write_bytes(bench.read_bytes())
    model = {"class": "GPT4V", "model": NAME, "api_base": f"{address}/chat/completions", "key": "none", "temperature": 0, "retry": 1}
    config = {"model": {NAME: model}, "data": {NAME: {"class": "CustomMCQDataset", "dataset": NAME}}}
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, str(checkout.resolve() / "run.py"), "--config", str(folder / "config.json")]
    command += ["--work-dir", str(outputs), "--judge", "exact_matching"]
    environment = os.environ | {"LMUData": str(data), "HF_HUB_OFFLINE": "1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"VLMEvalKit\n{done.stdout}{done.stderr}")
    import pandas
    from PIL import Image

    sys.path.insert(0, str(checkout.resolve()))
    from vlmeval.smp.vlm import encode_image_to_base64

    left = next((outputs / NAME).glob("T*"), outputs)
    if not (left / f"{NAME}_{NAME}.xlsx").exists():
        sys.exit(f"VLMEvalKit left no answers\n{done.stdout}{done.stderr}")
    predictions = pandas.read_excel(left / f"{NAME}_{NAME}.xlsx", dtype=str, keep_default_na=False)
    score = pandas.read_csv(left / f"{NAME}_{NAME}_acc.csv")["Overall"][0]
    # As it makes them of the files that it has written.
    rows = read(bench)
    for row in rows:
        file = next((data / "images" / NAME).glob(f"{row['index']}.*"))
        row["image"] = encode_image_to_base64(Image.open(file))
    write(folder / "sent.tsv", rows)
    return dict(zip(predictions["index"], predictions["prediction"])), score, folder / "sent.tsv"


# A task of lmms-eval, as its documentation describes them.
TASK = """
task: keel_kits
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function kits_task.visual
doc_to_text: !function kits_task.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 512, temperature: 0, do_sample: false}}
process_results: !function kits_task.results
metric_list:
  - metric: answer
    aggregation: !function kits_task.listed
    higher_is_better: true
metadata:
  - version: 0
"""

TASK_CODE = """
import base64, io, json
from PIL import Image

def visual(doc):
    return [Image.open(io.BytesIO(base64.b64decode(doc["image"]))).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["asked"]

def results(doc, answers):
    return {"answer": [doc["index"], answers[0]]}

def listed(items):
    with open(WHERE, "w") as file:
        json.dump(dict(items), file)
    return len(items)
"""


def lmms_eval(address: str, rows: list[dict], folder: Path) -> dict[str, str]:
    data, where = folder / "kits.jsonl", folder / "lmms.json"
    lines = [json.dumps({"index": row["index"], "image": row["image"], "asked": asked(row), "answer": row["answer"]}) for row in rows]
    data.write_text("\n".join(lines) + "\n")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "keel_kits.yaml").write_text(TASK.format(data=data))
    (tasks / "kits_task.py").write_text(f"WHERE = {str(where)!r}\n{TASK_CODE}")
    model = f"model_version={NAME},base_url={address},api_key=none,timeout=300"
    command = [sys.executable, "-m", "lmms_eval", "--model", "openai", "--model_args", model, "--tasks", "keel_kits"]
    command += ["--include_path", str(tasks), "--batch_size", "1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0 or not where.exists():
        sys.exit(f"lmms-eval\n{done.stdout}{done.stderr}")
    return json.loads(where.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--keel", default="keel")
    parser.add_argument("--vlmevalkit", type=Path, metavar="CHECKOUT")
    parser.add_argument("--lmms-eval", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = folder / "kits.tsv"
        if arguments.bench:
            bench.write_bytes(arguments.bench.read_bytes())
        else:
            drawn(bench)
        rows = read(bench)
        ours, score = answered(arguments.keel, arguments.run, bench)
        with serving(arguments.keel, arguments.run) as address:
            same("openai", openai_client(address, rows), ours)
            if arguments.lmms_eval:
                same("lmms-eval", lmms_eval(address, rows, folder), ours)
            if arguments.vlmevalkit:
                theirs, their_score, sent = vlmevalkit(address, bench, arguments.vlmevalkit, folder)
                ours, score = answered(arguments.keel, arguments.run, sent)
                same("VLMEvalKit", theirs, ours)
                if abs(their_score - score) > 1e-9:
                    sys.exit(f"VLMEvalKit's score is {their_score:.4f}, and that of keel eval --bench {score:.4f}")
                print(f"VLMEvalKit: its score is that of keel eval --bench, {score:.1%}")


if __name__ == "__main__":
    main()
