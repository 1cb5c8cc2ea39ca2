"""Timing, memory and the child processes of the PyTorch side of the benchmark."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Callable, NamedTuple

# glibc keeps freed memory instead of returning it to the system, so that big tensors stop paying for fresh pages.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}

# The share of the machine that others may take while a call still counts as undisturbed.
QUIET = 0.03


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def others_busy_s() -> float:
    """CPU seconds that all other processes of this machine have used so far; 0 where there is no /proc."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    own = os.times()
    busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - own.user - own.system


def others_share(since_s: float, elapsed_s: float) -> float:
    """The share of all cores that others used in `elapsed_s`, given `others_busy_s` at its beginning."""
    return max(0.0, others_busy_s() - since_s) / (elapsed_s * (os.cpu_count() or 1))


class Timed(NamedTuple):
    """One call: its wall time, and the share of the machine that other processes took meanwhile."""

    ms: float
    others: float


def timed(work: Callable[[], object]) -> Timed:
    """Runs and times one call."""
    busy, start = others_busy_s(), time.perf_counter()
    work()
    elapsed = time.perf_counter() - start
    return Timed(elapsed * 1e3, others_share(busy, elapsed))


def measure_calls(work: Callable[[], object], warm_up: int, repeats: int, patience_s: float = 0.0) -> list[Timed]:
    """`repeats` calls after the warm-up. Others' share is that of all calls together, since the kernel counts in ticks.

    With patience, a call starts only after half a second in which others used under 3 % of the machine and counts only
    if that held while it ran; when the patience is at its end, the quietest calls make up the number.
    """
    for _ in range(warm_up):
        work()
    if patience_s == 0.0:
        busy, start = others_busy_s(), time.perf_counter()
        calls = [timed(work) for _ in range(repeats)]
        share = others_share(busy, time.perf_counter() - start)
        return [call._replace(others=share) for call in calls]
    calls = []
    end = time.monotonic() + patience_s
    while time.monotonic() < end and sum(call.others < QUIET for call in calls) < repeats:
        busy = others_busy_s()
        time.sleep(0.5)
        if others_share(busy, 0.5) < QUIET:
            calls.append(timed(work))
    calls += [timed(work) for _ in range(repeats - len(calls))]
    return sorted(calls, key=lambda call: call.others)[:repeats]


def summary(calls: list[Timed]) -> dict[str, float]:
    """Median and extremes, ms, and the mean share of the machine that others took, %; left out for short runs, where
    it is less than the kernel's ticks."""
    times = [call.ms for call in calls]
    others = {"others_percent": round(100 * statistics.fmean(call.others for call in calls), 1)}
    return {
        "median_ms": round(statistics.median(times), 4),
        "min_ms": round(min(times), 4),
        "max_ms": round(max(times), 4),
        "calls": len(times),
        **(others if sum(times) > 200.0 else {}),
    }


def emit(row: dict) -> None:
    """One JSON line on standard output."""
    print(json.dumps(row), flush=True)


def run_child(script: str, arguments: list[str], threads: int, is_tuned: bool) -> None:
    """Runs `script` in a process of its own, so that its peak memory and its allocator are its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment |= TUNED_ALLOCATOR if is_tuned else {}
    subprocess.run([sys.executable, script, *arguments], env=environment, check=True)
