#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one run, without cargo: does it answer, are the kernels right there, how
# fast are they, and how fast is PyTorch on the same card. One line of JSON a fact, in one file for the device.
#
#     cargo tool bundle                                  # where there is cargo: builds everything into target/gpu
#     tools/gpu-run.sh                                   # where there is the GPU: target/gpu copied along with tools, bench
#     tools/gpu-run.sh --device simt --tiny              # the same script without a GPU, as `cargo test` runs it
#
#     --device cuda|simt|cpu    where to run (cuda)
#     --tiny                    shapes that take no time, in place of ViT-L/14 at batch 256
#     --bin DIR                 where keel, verify and the benchmarks lie (target/gpu)
#     --out DIR                 where the results go (bench/results)
#     --python PYTHON           a Python with torch for the peers; without one they are left out
#     --cases FILTER            which cases run (ops::)
#
# Exits with 1 when a part failed; the parts after it still run.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=cuda tiny= bin="$root/target/gpu" out="$root/bench/results" python= cases=ops::
while [ $# -gt 0 ]; do
    case "$1" in
        --tiny) tiny=1; shift; continue ;;
        --device | --bin | --out | --python | --cases)
            [ $# -ge 2 ] || { echo "gpu-run: $1 needs a value" >&2; exit 2; } ;;
        *) echo "gpu-run: unknown option $1; the head of the script lists them" >&2; exit 2 ;;
    esac
    case "$1" in
        --device) device=$2 ;;
        --bin) bin=$2 ;;
        --out) out=$2 ;;
        --python) python=$2 ;;
        --cases) cases=$2 ;;
    esac
    shift 2
done
case "$device" in cuda | simt | cpu) ;; *) echo "gpu-run: --device is cuda, simt or cpu, not $device" >&2; exit 2 ;; esac
for program in keel verify; do
    [ -x "$bin/$program" ] || { echo "gpu-run: $bin/$program is missing; cargo tool bundle builds it" >&2; exit 2; }
done
bin=$(cd "$bin" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
scratch=$(mktemp -d) && trap 'rm -rf "$scratch"' EXIT
# The tests' binary finds its files below this folder, wherever it was built.
export KEEL_ROOT=$root
failed=0

# Text as a JSON string.
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
row() { printf '{%s}\n' "$1" >>"$results"; }
say() { printf '%s\n' "— $*"; }
smi() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
clocks() { row "\"kind\":\"clocks\",\"when\":$(quoted "$1"),\"sm\":$(quoted "$(smi clocks.sm)"),\"memory\":$(quoted "$(smi clocks.mem)"),\"power\":$(quoted "$(smi power.draw)"),\"temperature\":$(quoted "$(smi temperature.gpu)")"; }

name=$device
[ "$device" = cuda ] && name=$(smi name)
[ -n "$name" ] || name="cuda-unknown"
results="$out/$(printf '%s' "$name" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9.-').jsonl"
: >"$results"

say "machine"
commit=$(cat "$bin/commit" 2>/dev/null || git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
row "\"kind\":\"machine\",\"date\":$(quoted "$(date -u +%Y-%m-%dT%H:%MZ)"),\"device\":$(quoted "$name"),\"driver\":$(quoted "$(smi driver_version)"),\"power_limit\":$(quoted "$(smi power.limit)"),\"processor\":$(quoted "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)"),\"system\":$(quoted "$(uname -sr)"),\"commit\":$(quoted "$commit"),\"tiny\":${tiny:-0}"

# One part: its name, then a command whose output is kept in a log. Its last lines are told when it fails.
part() {
    local kind=$1 log=$scratch/$1.log started=$SECONDS status=0
    shift
    say "$kind: $*"
    "$@" >"$log" 2>&1 || status=$?
    if [ $status -ne 0 ]; then
        failed=1
        tail -n 20 "$log" | sed 's/^/    /' >&2
    fi
    local last
    last=$(grep -E '^(device|test result|error)|ERROR SUMMARY' "$log" | tail -n 1)
    row "\"kind\":$(quoted "$kind"),\"status\":$status,\"seconds\":$((SECONDS - started)),\"says\":$(quoted "$last")"
    return $status
}
# The lines of JSON that a part printed.
rows_of() { grep '^{' "$scratch/$1.log" >>"$results"; }

cd "$scratch" || exit 2
shapes=large repeats=20
[ -n "$tiny" ] && shapes=tiny repeats=2
part probe "$bin/keel" train --recipe tiny --device "$device" --dry-run
part steps "$bin/keel" train --recipe tiny --device "$device" --max-steps 2 --no-evaluation --out "$scratch/run"

# Every case runs on the reference, the processor, the emulator and, where there is one, the GPU.
part cases "$bin/verify" --quiet "$cases"

if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 3 --target-processes all \
            "$bin/kernel-report" --time --device cuda --shapes tiny --repeats 1
    done
else
    row '"kind":"sanitizer","status":"left out: no compute-sanitizer, or no GPU"'
fi

[ "$device" = cuda ] && clocks before
for precision in bf16 f32; do
    [ "$device" = cpu ] && [ $precision = bf16 ] && continue
    part "time-$precision" "$bin/kernel-report" --time --json --device "$device" --precision $precision \
        --shapes $shapes --repeats $repeats && rows_of "time-$precision"
done
[ "$device" = cuda ] && clocks after

# The benchmarks, and the same work in PyTorch.
if [ -x "$bin/steps" ] && [ -z "$tiny" ]; then
    for step in $("$bin/steps" --list-steps "$device"); do
        part "step-$step" "$bin/steps" --one "$step" --device "$device" && rows_of "step-$step"
    done
fi
if [ -x "$bin/kernels" ] && [ -z "$tiny" ]; then
    part criterion "$bin/kernels" --bench
fi
if [ -n "$python" ]; then
    peer=$device
    [ "$device" = simt ] && peer=cpu
    part peers "$python" "$root/bench/peers/gpu.py" --device $peer ${tiny:+--tiny} && rows_of peers
else
    row '"kind":"peers","status":"left out: no --python"'
fi
say "$(wc -l <"$results") facts in $results"
exit $failed
