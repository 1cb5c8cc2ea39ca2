"""Puts requests at once on `keel serve` for a stated time: requests and tokens a second, times, memory, errors by kind.

    python3 tools/load.py RUN [--seconds 60] [--clients 8] [--streams 4] [--queue 64] [--threads N] [--max-tokens 64] [--pause 0]
        [--seed 1] [--keel PROGRAM] [--device cpu] [--flat MIB_AN_HOUR] [--machine NAME --out FILE.csv]

Each client sends one request after the other, --pause seconds apart, of a kind drawn by seed: a question, one about an image, a
conversation of several turns (each whole or as a stream), a stream that is left in the middle, and bad ones: broken JSON, a broken image,
another model, an address in place of an image, a body beyond the limit. Every answer must be the one that the same request got before (at temperature 0), every bad
request must be refused with its status and in OpenAI's form; whatever else comes is an error, counted by kind, and ends the command with
1. A refusal for a full queue (429) is counted apart: it says that more was asked than could be answered.

Resident memory of the server is read once a second. Its slope is that of a straight line through the second half of the time, by least
squares: the first half fills caches and the allocator's pools. --flat ends with 1 where the slope is larger, and needs time: over a minute
noise alone is some MiB an hour. The server ends by TERM, with requests under way, which have to be answered.

Needs nothing but Python.
"""

import argparse
import base64
import collections
import csv
import datetime
import http.client
import json
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

NAME = "loaded"
LIMIT = 4 << 20
# How often each kind of request is drawn.
KINDS = {"question": 4, "image": 8, "conversation": 3, "left": 2, "bad": 3}
QUESTIONS = ["what is this?", "is there a cat?", "how many are there?", "what colour is it?"]
COLOURS = [(220, 40, 40), (40, 180, 60), (50, 80, 220), (240, 210, 40)]
FIELDS = ["date", "machine", "threads", "seconds", "clients", "streams", "requests", "refused_full", "errors", "requests_per_second"]
FIELDS += ["tokens_per_second", "seconds_p50", "seconds_p90", "seconds_p99", "first_token_p50", "mib_start", "mib_end", "mib_per_hour"]


def png(colour: tuple, size: int = 64) -> bytes:
    """A square on white."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    inside = range(size // 4, 3 * size // 4)
    rows = b"".join(
        b"\0" + b"".join(bytes(colour) if x in inside and y in inside else b"\xff\xff\xff" for x in range(size)) for y in range(size)
    )
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


IMAGES = [base64.b64encode(png(colour)).decode() for colour in COLOURS]


def image(number: int) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGES[number]}"}}


def user(*parts) -> dict:
    return {"role": "user", "content": [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]}


def chat(kind: str, draw: random.Random, tokens: int) -> dict:
    """The body of a request that is answered."""
    question = draw.choice(QUESTIONS)
    messages = [user(question)]
    if kind in ("image", "left"):
        messages = [user(image(draw.randrange(4)), question)]
    if kind == "conversation":
        messages = [user(image(draw.randrange(4)), QUESTIONS[0]), {"role": "assistant", "content": "a square"}, user(question)]
    body = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": tokens}
    if kind == "left" or draw.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def bad(draw: random.Random) -> tuple[bytes, int]:
    """The bytes of a request that has to be refused, and the status."""
    good = {"model": NAME, "messages": [user(QUESTIONS[0])]}
    def url(text: str) -> dict:
        return good | {"messages": [user({"type": "image_url", "image_url": {"url": text}})]}

    return draw.choice([
        (b'{"model": ', 400),
        (json.dumps(url(f"data:image/png;base64,{IMAGES[0][:60]}")).encode(), 400),
        (json.dumps(url("http://127.0.0.1:9/a.png")).encode(), 400),
        (json.dumps(good | {"model": "another"}).encode(), 404),
        (json.dumps(good | {"user": "x" * LIMIT}).encode(), 413),
    ])


class Load:
    """What all clients share."""

    def __init__(self, arguments, address: str):
        self.arguments, self.address = arguments, address
        self.lock = threading.Lock()
        self.ends, self.ended = threading.Event(), float("inf")
        self.answers: dict[str, str] = {}
        self.seconds, self.first = [], []
        self.counts, self.errors = collections.Counter(), collections.Counter()
        self.tokens = 0

    def client(self, number: int) -> None:
        draw = random.Random(f"{self.arguments.seed} {number}")
        connection = None
        while not self.ends.is_set():
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            connection = connection or http.client.HTTPConnection(self.address, timeout=300)
            begin, is_cut = time.perf_counter(), False
            try:
                outcome = self.refused(connection, draw) if kind == "bad" else self.answered(connection, kind, draw)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as problem:
                outcome = f"{kind}: {type(problem).__name__}: {problem}"
                # What was asked as the server ended, on a connection that it was closing, need not be answered; what was asked before has to be.
                is_cut = begin > self.ended - 0.05
            # A reply that is left in the middle, or comes before the request is read, takes its connection with it.
            if outcome is not None or kind in ("left", "bad"):
                connection.close()
                connection = None
            if outcome is not None and not is_cut:
                with self.lock:
                    (self.counts if outcome == "full" else self.errors)[outcome] += 1
                if outcome == "full":
                    self.ends.wait(0.2)
            self.ends.wait(self.arguments.pause)

    def post(self, connection, body: bytes):
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        return connection.getresponse()

    def refused(self, connection, draw) -> str | None:
        body, status = bad(draw)
        try:
            reply = self.post(connection, body)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before it was read: the reply is there, if the system kept it.
            if status == 413:
                self.count("refused")
                return None
            raise
        error = json.loads(reply.read())["error"]
        if reply.status == 429:
            return "full"
        if reply.status != status or set(error) != {"message", "type", "param", "code"}:
            return f"bad: wanted {status}, got {reply.status}: {error}"
        self.count("refused")
        return None

    def answered(self, connection, kind: str, draw) -> str | None:
        body = chat(kind, draw, self.arguments.max_tokens)
        begin = time.perf_counter()
        reply = self.post(connection, json.dumps(body).encode())
        if reply.status != 200:
            error = json.loads(reply.read())["error"]
            return "full" if reply.status == 429 else f"{kind}: {reply.status}: {error['message']}"
        if kind == "left":
            reply.read(64)
            self.count(kind)
            return None
        text, tokens, first = self.streamed(reply) if body.get("stream") else self.whole(reply)
        end = time.perf_counter()
        known = json.dumps([body["messages"]])
        with self.lock:
            if self.answers.setdefault(known, text) != text:
                return f"{kind}: another answer than before to the same request"
            self.counts[kind] += 1
            self.tokens += tokens
            self.seconds.append(end - begin)
            if first is not None:
                self.first.append(first - begin)
        return None

    def whole(self, reply):
        json_ = json.loads(reply.read())
        return json_["choices"][0]["message"]["content"], json_["usage"]["completion_tokens"], None

    def streamed(self, reply):
        text, tokens, first, last = "", None, None, b""
        for line in reply:
            if line.startswith(b"data: "):
                last = line.strip()
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(event["error"]["message"])
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text += piece
        if last != b"data: [DONE]" or tokens is None:
            raise ValueError("a stream without its end")
        return text, tokens, first

    def count(self, kind: str) -> None:
        with self.lock:
            self.counts[kind] += 1


def resident(process: int) -> float:
    """MiB that a process holds."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the server has ended")


def slope(points: list[tuple[float, float]]) -> float:
    """MiB an hour, of the second half."""
    points = points[len(points) // 2 :]
    if len(points) < 2:
        return 0.0
    return 3600 * statistics.linear_regression([at for at, _ in points], [mib for _, mib in points]).slope


def started(arguments) -> tuple[subprocess.Popen, str]:
    command = [arguments.keel, "serve", str(arguments.run), "--name", NAME, "--port", "0", "--device", arguments.device]
    command += ["--streams", str(arguments.streams), "--queue", str(arguments.queue), "--max-request", "4M"]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = ""
    while "a page at " not in line:
        line = server.stdout.readline()
        if not line:
            raise SystemExit("keel serve did not start")
    return server, line.split("http://")[1].split("/")[0]


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keel", default="keel")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flat", type=float)
    parser.add_argument("--machine", default="unnamed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    server, address = started(arguments)
    load = Load(arguments, address)
    clients = [threading.Thread(target=load.client, args=(number,), daemon=True) for number in range(arguments.clients)]
    start = time.perf_counter()
    memory = [(0.0, resident(server.pid))]
    for client in clients:
        client.start()
    while (now := time.perf_counter() - start) < arguments.seconds:
        time.sleep(min(1.0, arguments.seconds - now))
        memory.append((time.perf_counter() - start, resident(server.pid)))
    spent = time.perf_counter() - start
    # Until now, with requests under way.
    counts, tokens = load.counts.copy(), load.tokens
    full = counts["full"]
    requests = sum(counts.values()) - full
    load.ended = time.perf_counter()
    load.ends.set()
    server.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(300)
    code = server.wait(300)
    errors = sum(load.errors.values()) + (code != 0)
    middle = memory[len(memory) // 2][1]
    rates = [round(requests / spent, 2), round(tokens / spent, 1)]
    times = [round(quantile(load.seconds, share), 3) for share in (0.5, 0.9, 0.99)] + [round(quantile(load.first, 0.5), 3)]
    mib = [round(memory[0][1], 1), round(memory[-1][1], 1), round(slope(memory), 2)]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"{spent:.0f} s, {arguments.clients} clients, {arguments.streams} streams: {requests} requests ({kinds})")
    print(f"{rates[0]} requests/s, {rates[1]} tokens/s of answers")
    print(f"seconds an answer: median {times[0]}, 90 % {times[1]}, 99 % {times[2]}; to the first token of a stream: median {times[3]}")
    print(f"resident: {mib[0]} MiB at the start, {middle:.1f} in the middle, {mib[1]} at the end; {mib[2]:+} MiB an hour in the second half")
    print(f"the server ended with {code}; errors: {errors}")
    for problem, count in load.errors.most_common():
        print(f"  {count} times: {problem}")
    if arguments.out:
        row = [datetime.date.today().isoformat(), arguments.machine, arguments.threads or "all", round(spent), arguments.clients]
        row += [arguments.streams, requests, full, errors, *rates, *times, *mib]
        is_new = not arguments.out.exists()
        with arguments.out.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([FIELDS] * is_new + [row])
    if errors:
        sys.exit(1)
    if arguments.flat is not None and mib[2] > arguments.flat:
        sys.exit(f"memory grows by {mib[2]} MiB an hour, and may by {arguments.flat}")


if __name__ == "__main__":
    main()
