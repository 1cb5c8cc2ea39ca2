"""Tokens a second of answers, by `keel serve` and by transformers on the same weights, in turns on the same machine.

    keel train --recipe tiny --language FOLDER --max-steps 1 --no-evaluation --out runs/asked --set stage.warm-up.max_tokens=512
    python bench/peers/generation.py runs/asked [--stage warm-up] [--tokens 128] [--rounds 5] [--threads 2] [--answers 1,4]
        [--precisions f32,bf16] [--keel PROGRAM] [--machine NAME --out bench/results/generation.csv]

FOLDER is a Hugging Face folder of a decoder. The run's language model is exported and loaded by transformers, so that both answer with
the same numbers. Counted is what follows the first token: the prompt is read before, by both. The answers have to be the same text in f32. Beside the rate
stands the processor time of a token, of all threads, which other work on the machine lengthens less.
Needs torch and transformers (bench/peers/requirements.txt, tools/real-requirements.txt).
"""

import argparse
import csv
import datetime
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

QUESTION = "Write a long story about a fox who learns to paint, with every detail of what it paints and whom it meets."
FIELDS = ["date", "machine", "threads", "program", "precision", "answers_at_once", "median_tokens_per_second", "least", "most", "median_processor_ms"]


class Keel:
    """A server of its own."""

    def __init__(self, arguments, precision: str):
        command = [arguments.keel, "serve", str(arguments.run), "--name", "asked", "--port", "0", "--device", "cpu"]
        command += ["--threads", str(arguments.threads), "--precision", precision, "--streams", str(max(arguments.answers))]
        if arguments.stage:
            command += ["--stage", arguments.stage]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = ""
        while "a page at " not in line:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("keel serve did not start")
        self.address = line.split("http://")[1].split("/")[0]

    def processor(self) -> float:
        """Seconds that its threads have computed."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def one(self, tokens: int):
        """The answer, its tokens, and when its first and its last came, on the clock and in the server's own time."""
        body = {
            "model": "asked",
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": QUESTION}],
        }
        connection = http.client.HTTPConnection(self.address, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"keel serve: {reply.read().decode()}")
        text, times, count = "", [], 0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "usage" in event:
                count = event["usage"]["completion_tokens"]
                continue
            if piece := event["choices"][0]["delta"].get("content"):
                text += piece
                times.append((time.perf_counter(), self.processor()))
        return text, count, times[0], times[-1]

    def answer(self, answers: int, tokens: int):
        """The text, tokens a second of so many answers at once, and processor time of one."""
        found = [None] * answers
        def ask(index):
            found[index] = self.one(tokens)
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(answers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # From the first token of the last to begin: what the others had by then counts for nobody.
        begin, end = max(one[2] for one in found), max(one[3] for one in found)
        count = sum((one[1] - 1) * (one[3][0] - begin[0]) / (one[3][0] - one[2][0]) for one in found)
        return found[0][0], count / (end[0] - begin[0]), (end[1] - begin[1]) / count

    def close(self):
        self.process.terminate()
        self.process.wait()


class Transformers:
    """The exported folder in transformers."""

    def __init__(self, folder: Path, threads: int, precision: str):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        chat = [{"role": "user", "content": QUESTION}]
        self.prompt = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def timed(self, answers: int, tokens: int):
        ids = self.prompt["input_ids"].repeat(answers, 1)
        start = time.perf_counter(), time.process_time()
        with self.torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, temperature=None, top_p=None
            )
        return out[0, ids.shape[1]:], (time.perf_counter() - start[0], time.process_time() - start[1])

    def answer(self, answers: int, tokens: int):
        _, first = self.timed(answers, 1)
        ids, all_of_them = self.timed(answers, tokens)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        count = answers * (len(ids) - 1)
        return text, count / (all_of_them[0] - first[0]), (all_of_them[1] - first[1]) / count


def write(path: Path, rows: list):
    """All that was measured so far."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keel", default="keel")
    parser.add_argument("--answers", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4])
    parser.add_argument("--precisions", default="f32,bf16")
    parser.add_argument("--machine", default="unnamed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "language"
        source = arguments.run
        if arguments.stage:
            source = next(source.glob(f"checkpoints/*-{arguments.stage}.safetensors"))
        command = [arguments.keel, "export", str(source), "--part", "language", "--out", str(exported)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        import transformers

        for precision in arguments.precisions.split(","):
            programs = {
                "keel": Keel(arguments, precision),
                f"transformers {transformers.__version__}": Transformers(exported, arguments.threads, precision),
            }
            for answers in arguments.answers:
                rates = {name: [] for name in programs}
                spent = {name: [] for name in programs}
                texts = {}
                for turn in range(arguments.rounds + 1):
                    for name, program in programs.items():
                        texts[name], rate, seconds = program.answer(answers, arguments.tokens)
                        # The first turn warms up.
                        if turn:
                            rates[name].append(rate)
                            spent[name].append(1e3 * seconds)
                one, other = texts.values()
                same = one.strip() == other.strip()
                for name, found in rates.items():
                    middle = statistics.median(found)
                    processor = statistics.median(spent[name])
                    line = f"{precision}, {answers} at once, {name}: {middle:.1f} tokens/s ({min(found):.1f} to {max(found):.1f})"
                    print(f"{line}, {processor:.1f} ms of processor time a token", flush=True)
                    numbers = [round(x, 1) for x in (middle, min(found), max(found), processor)]
                    day = datetime.date.today().isoformat()
                    rows.append([day, arguments.machine, arguments.threads, name, precision, answers, *numbers])
                print(f"{precision}, {answers} at once: the answers are {'the same' if same else 'different'}", flush=True)
                if precision == "f32" and not same:
                    raise SystemExit(f"keel:\n{one}\ntransformers:\n{other}")
                if arguments.out:
                    write(arguments.out, rows)
            programs["keel"].close()


if __name__ == "__main__":
    main()
