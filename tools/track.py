"""Sends what TensorBoard gets of a run to trackio, another tracker on the same machine, while the run goes on or afterwards.

    pip install trackio
    python tools/track.py runs/emoji-1                  until the run's process ends
    python tools/track.py runs/emoji-1 --once           what there is
    trackio show --project keel

Reads the run's event files and hands each record to trackio's own functions: init, log, finish. trackio keeps it in a file of this
machine (TRACKIO_DIR); nothing else is contacted. A run is one run of the project, named after its folder.
"""

from __future__ import annotations

import argparse
import fcntl
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message of the protocol buffers' wire format, as far as event files have them."""

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    at = 0
    while at < len(message):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case kind:
                length = {1: 8, 5: 4}.get(kind) or varint()
                yield key >> 3, message[at : at + length]
                at += length


def scalars(event: bytes) -> tuple[int, dict[str, float]]:
    """The step of an event, and its numbers by tag."""
    step, numbers = 0, {}
    for field, value in fields(event):
        if field == 2:
            step = value
        elif field == 5:
            for _, summary in fields(value):
                parts = dict(fields(summary))
                numbers[parts[1].decode()] = struct.unpack("<f", parts[2])[0]
    return step, numbers


def records(run: Path, seen: dict[Path, int]) -> Iterator[tuple[int, dict[str, float]]]:
    """What the event files have beyond `seen`, whole records alone, in the order in which TensorBoard reads the files."""
    for path in sorted(run.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        # A resumed run cuts off what it is about to do again.
        at = min(seen.get(path, 0), len(data))
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            end = at + 16 + length
            if end > len(data):
                break
            yield scalars(data[at + 12 : at + 12 + length])
            at = end
        seen[path] = at


def is_running(run: Path) -> bool:
    """Whether a process trains in the folder: it holds the run's lock."""
    try:
        with (run / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--project", default="keel", help="the project of trackio's that it becomes a run of")
    parser.add_argument("--once", action="store_true", help="send what there is, and do not wait for more")
    arguments = parser.parse_args()
    if not any(arguments.run.glob("events.out.tfevents.*")):
        print(f"{arguments.run}: want the folder of a run, with its event files; found none", file=sys.stderr)
        return 2
    import trackio

    tracked = trackio.init(project=arguments.project, name=arguments.run.resolve().name, embed=False)
    seen: dict[Path, int] = {}
    sent = 0
    while True:
        # Asked before the files are read, so that the last records are not missed.
        goes_on = not arguments.once and is_running(arguments.run)
        for step, numbers in records(arguments.run, seen):
            if numbers:
                tracked.log(numbers, step=step)
                sent += len(numbers)
        if not goes_on:
            break
        time.sleep(1.0)
    tracked.finish()
    print(f"{arguments.run}: {sent} numbers sent to project {arguments.project}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
