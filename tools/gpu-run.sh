#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one run of a few minutes, without cargo: does it answer, are the kernels right
# there, how fast are they, and how fast is PyTorch on the same card. One line of JSON a fact, in one file for the device.
#
#     cargo tool bundle                                  # where there is cargo: builds target/gpu and target/keel-gpu.tar.xz
#     tar xf keel-gpu.tar.xz && keel-gpu/tools/gpu-run.sh      # where there is the GPU
#     tools/gpu-run.sh --device simt --tiny              # the same script without a GPU, as `cargo test` runs it
#
#     --device cuda|simt|cpu    where to run (cuda)
#     --seconds N               ends by itself after so long (480)
#     --tiny                    shapes that take no time, in place of ViT-L/14 at batch 256
#     --bin DIR                 where keel, verify, kernel-report, steps and the expected values lie (target/gpu)
#     --out DIR                 where the results go (bench/results)
#     --python PYTHON           a Python with torch for the peers (python3 where that has torch)
#     --cases FILTER            which cases run (all)
#
# The parts come in the order of what is most worth knowing. Each is a process with a time limit, and each fact is written
# when it is known: what is interrupted keeps what was found, and a part that fails or hangs costs itself alone. Exits with 1
# when a part failed, with 0 when all passed or were left out; a row says which and why.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=cuda seconds=480 tiny= bin="$root/target/gpu" out="$root/bench/results" python= cases=
while [ $# -gt 0 ]; do
    case "$1" in
        --tiny) tiny=1; shift; continue ;;
        --device | --seconds | --bin | --out | --python | --cases)
            [ $# -ge 2 ] || { echo "gpu-run: $1 needs a value" >&2; exit 2; } ;;
        *) echo "gpu-run: unknown option $1; the head of the script lists them" >&2; exit 2 ;;
    esac
    case "$1" in
        --device) device=$2 ;;
        --seconds) seconds=$2 ;;
        --bin) bin=$2 ;;
        --out) out=$2 ;;
        --python) python=$2 ;;
        --cases) cases=$2 ;;
    esac
    shift 2
done
case "$device" in cuda | simt | cpu) ;; *) echo "gpu-run: --device is cuda, simt or cpu, not $device" >&2; exit 2 ;; esac
case "$seconds" in '' | *[!0-9]* | 0*) echo "gpu-run: --seconds is a whole number from 1 up, not $seconds" >&2; exit 2 ;; esac
for program in keel verify; do
    [ -x "$bin/$program" ] || { echo "gpu-run: $bin/$program is missing; cargo tool bundle builds it" >&2; exit 2; }
done
end=$((SECONDS + seconds))
# Nothing may hang, not even what only looks around: a driver that is ill can.
if [ -z "$python" ] && timeout -k 5 60 python3 -c 'import torch' 2>/dev/null; then python=python3; fi
bin=$(cd "$bin" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
scratch=$(mktemp -d) || exit 2
# The tests' binary finds its files below this folder, wherever it was built.
export KEEL_ROOT=$root
# The drawn cases that the expected values are of; smaller ones have none.
export PROPTEST_RNG_SEED=20261123
export PROPTEST_MAX_SHRINK_ITERS=0
failed=0

lines=$scratch/lines
mkfifo "$lines" || exit 2

# Text as a JSON string.
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
row() { printf '{%s}\n' "$1" >>"$results"; }
say() { printf '%s\n' "— $*"; }
smi() { timeout -k 5 10 nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
clocks() {
    [ "$device" = cuda ] && command -v nvidia-smi >/dev/null || return 0
    row "\"kind\":\"clocks\",\"when\":$(quoted "$1"),\"sm\":$(quoted "$(smi clocks.sm)"),\"memory\":$(quoted "$(smi clocks.mem)"),\"power\":$(quoted "$(smi power.draw)"),\"temperature\":$(quoted "$(smi temperature.gpu)")"
}
left_out() {
    say "$1: left out, $2"
    row "\"kind\":$(quoted "$1"),\"status\":$(quoted "left out: $2")"
}

name=$device
[ "$device" = cuda ] && name=$(smi name)
[ -n "$name" ] || name="cuda-unknown"
results="$out/$(printf '%s' "$name" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9.-').jsonl"
: >"$results"

runner=
finish() {
    trap - EXIT INT TERM HUP
    # The part that runs now; it ends its own children.
    [ -n "$runner" ] && kill "$runner" 2>/dev/null && wait "$runner"
    row "\"kind\":\"end\",\"status\":$(quoted "$1"),\"failed\":$failed,\"seconds\":$SECONDS"
    rm -rf "$scratch"
    say "$(wc -l <"$results") facts in $results"
}
trap 'finish interrupted; exit 1' INT TERM HUP
trap 'finish complete' EXIT

say "machine"
commit=$(cat "$bin/commit" 2>/dev/null || git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
row "\"kind\":\"machine\",\"date\":$(quoted "$(date -u +%Y-%m-%dT%H:%MZ)"),\"device\":$(quoted "$name"),\"driver\":$(quoted "$(smi driver_version)"),\"power_limit\":$(quoted "$(smi power.limit)"),\"processor\":$(quoted "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)"),\"system\":$(quoted "$(uname -sr)"),\"commit\":$(quoted "$commit"),\"tiny\":${tiny:-0}"

# One part: its name, the most seconds it may take, then a command. The lines of JSON it prints become rows at once; of the
# others the last are told when it fails.
part() {
    local kind=$1 limit=$2 log=$scratch/$1.log started=$SECONDS status=0 left=$((end - SECONDS))
    shift 2
    if [ $left -lt 3 ]; then
        left_out "$kind" "no time left of $seconds seconds"
        return 0
    fi
    [ $limit -gt $left ] && limit=$left
    say "$kind: $*"
    : >"$log"
    # In the background, because a shell that waits for a child in front hears of no signal.
    timeout -k 5 "$limit" "$@" >"$lines" 2>>"$log" &
    runner=$!
    while IFS= read -r line; do
        case "$line" in
            '{'*'}') printf '%s\n' "$line" >>"$results" ;;
            *) printf '%s\n' "$line" >>"$log" ;;
        esac
    done <"$lines"
    wait "$runner" || status=$?
    runner=
    if [ "$status" -ne 0 ]; then
        failed=1
        tail -n 20 "$log" | sed 's/^/    /' >&2
    fi
    local last
    last=$(grep -aE '^(device|test result|error)|ERROR SUMMARY' "$log" | tail -n 1)
    [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && last="ended after its limit of $limit seconds; ${last}"
    row "\"kind\":$(quoted "$kind"),\"status\":$status,\"seconds\":$((SECONDS - started)),\"says\":$(quoted "$last")"
    return 0
}

# Times of one example's ops. A fault ends every later use of the GPU in its process, so each has one of its own.
times() {
    part "time-$1-$2" "${3:-40}" "$bin/kernel-report" --time --json --device "$device" --precision "$2" --shapes $shapes \
        --repeats $repeats --example "$1"
}
# The same with portable kernels, on a chip that has others for some of them.
portable_times() {
    if [ "$device" = cuda ]; then
        KEEL_CUDA_TIER=portable part "time-$1-$2-portable" "${3:-40}" "$bin/kernel-report" --time --json --device cuda \
            --precision "$2" --shapes $shapes --repeats $repeats --example "$1"
    else
        left_out "time-$1-$2-portable" "no GPU"
    fi
}
# Ops and steps in PyTorch.
peers() {
    local kind=$1 limit=$2 peer=$device
    shift 2
    [ "$device" = simt ] && peer=cpu
    if [ -z "$python" ]; then
        left_out "$kind" "no Python with torch"
    else
        part "$kind" "$limit" "$python" "$root/bench/peers/gpu.py" --device $peer ${tiny:+--tiny} "$@"
    fi
}
# A tool of NVIDIA's over the examples at their smallest.
sanitize() {
    if [ "$device" != cuda ] || ! command -v compute-sanitizer >/dev/null; then
        left_out "$1" "no compute-sanitizer, or no GPU"
    else
        part "$1" 60 compute-sanitizer --tool "$1" --error-exitcode 3 "$bin/kernel-report" --time --device cuda --shapes tiny \
            --repeats 1
    fi
}
# What the chip counts while an example runs, each kernel and counter a row.
counters() {
    if [ "$device" != cuda ] || ! command -v ncu >/dev/null; then
        left_out "counters-$1" "no ncu, or no GPU"
        return
    fi
    local metrics=smsp__inst_executed.sum,smsp__inst_executed_pipe_tensor.sum,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum
    metrics+=,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum
    metrics+=,l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum,gpu__time_duration.sum
    part "counters-$1" 60 bash -c '
        set -o pipefail
        ncu --csv --launch-count 24 --metrics "$2" "$3" --time --device cuda --shapes small --repeats 1 --example "$1" |
            awk -v example="$1" -f "$4"' counters "$1" "$metrics" "$bin/kernel-report" "$scratch/counters.awk"
}
# The table that ncu prints, a counter of a kernel a line: fields in quotes, numbers with commas.
cat >"$scratch/counters.awk" <<'AWK'
{ sub(/^"/, ""); sub(/"$/, ""); count = split($0, field, /","/) }
field[1] == "ID" { for (i = 1; i <= count; ++i) at[field[i]] = i; next }
count > 1 && at["Metric Value"] && field[1] ~ /^[0-9]+$/ {
    value = field[at["Metric Value"]]
    gsub(/,/, "", value)
    printf "{\"kind\":\"counter\",\"example\":\"%s\",\"kernel\":\"%s\",\"grid\":\"%s\",\"counter\":\"%s\",\"unit\":\"%s\",\"value\":\"%s\"}\n", \
        example, field[at["Kernel Name"]], field[at["Grid Size"]], field[at["Metric Name"]], field[at["Metric Unit"]], value
    fflush()
}
AWK

cd "$scratch" || exit 2
shapes=large repeats=20
[ -n "$tiny" ] && shapes=tiny repeats=2

# 1. Does it answer, and does a whole program run there.
part probe 60 "$bin/keel" train --recipe tiny --device "$device" --dry-run
part steps 60 "$bin/keel" train --recipe tiny --device "$device" --max-steps 2 --no-evaluation --out "$scratch/run"

# 2. Numbers. On the GPU every case of every op and ten steps of each stage against values that were computed beforehand;
# elsewhere the cases as tests run them.
if [ "$device" = cuda ]; then
    export KEEL_ROWS=$results
    if [ -f "$bin/expected" ]; then
        export KEEL_EXPECTED=read:$bin/expected
    fi
    for group in $(timeout -k 5 20 "$bin/verify" --list "${cases:-ops::}" 2>/dev/null | sed -n 's/^\(ops::[a-z0-9_]*\)::.*: test$/\1/p' | sort -u); do
        part "cases-${group#ops::}" 60 "$bin/verify" --quiet "$group::" --skip pytorch
    done
    [ -n "$cases" ] || part "cases-steps" 90 "$bin/verify" --quiet devices::steps devices::ten_steps
    unset KEEL_EXPECTED KEEL_ROWS
    known=$(timeout -k 5 20 "$bin/keel" kernels | sed -n 's/^\([0-9][0-9]*\) kernels.*/\1/p')
    agree=$(grep -a '"kind":"case"' "$results" | sed 's/.*"kernels":\[\([^]]*\)\].*/\1/' | tr ',' '\n' | sort -u | grep -c .)
    stand_in=$(grep -ac '"stand_in":true' "$results")
    says="$agree of $known kernels ran in a case that was held to its values"
    [ "$stand_in" -gt 0 ] && says="$says, on the tests' own driver: no GPU computed anything"
    say "$says"
    row "\"kind\":\"kernels\",\"ran\":$agree,\"known\":${known:-0},\"stand_in\":$([ "$stand_in" -gt 0 ] && echo true || echo false),\"says\":$(quoted "$says")"
else
    part cases 300 "$bin/verify" --quiet "${cases:-ops::}"
fi

# 3. What the card reaches at most, by PyTorch: copies, and products by cuBLAS.
clocks before
peers ceilings 60 --only ceilings --no-compile

# 4. The ops that a step spends its time in.
eight="linear linear_gelu attention layer_norm linear_cross_entropy contrastive_loss swiglu update"
if [ "$device" != cpu ]; then
    for example in $eight; do times "$example" bf16; done
    for example in linear linear_gelu; do portable_times "$example" bf16; done
else
    for example in $eight; do times "$example" f32; done
fi
clocks after-ops

# 5. The whole step, captured as one graph.
if [ -n "$tiny" ] || [ ! -x "$bin/steps" ]; then
    left_out step-vit_large "shapes that take no time were asked for, or $bin has no steps"
elif [ "$device" = cuda ]; then
    part step-vit_large 120 "$bin/steps" --one vit_large --device cuda
    clocks after-step
fi

# 6. The same in PyTorch, eager.
peers peers-eager 100 --no-compile --only linear attention layer_norm cross_entropy contrastive adamw
peers peers-step 60 --no-compile --only step

# 7. Accesses and races, at the smallest shapes.
sanitize memcheck
sanitize racecheck

# 8. Counters.
for example in linear attention layer_norm; do counters "$example"; done

# 9. The rest.
rest="linear_residual patch_embed pixel_unshuffle mean_pool l2_normalize rms_norm rope embedding"
if [ "$device" != cpu ]; then
    for example in $rest; do times "$example" bf16; done
    for example in $eight $rest; do times "$example" f32; done
else
    for example in $rest; do times "$example" f32; done
fi
if [ -z "$tiny" ] && [ -x "$bin/steps" ] && [ $SECONDS -lt $end ]; then
    for step in $(timeout -k 5 10 "$bin/steps" --list-steps cpu); do
        part "step-$step" 60 "$bin/steps" --one "$step" --device "$device"
    done
fi
sanitize initcheck
sanitize synccheck
[ -n "$tiny" ] || peers peers-compiled 240
exit $failed
