#!/usr/bin/env bash
# Everything that wants to be known of a GPU, in one call of at most ten minutes, without network:
#
#     tools/cuda/day.sh build FOLDER         # where CUDA's compiler is: programs, packed, at most 60 MB
#     FOLDER/day.sh run [RESULTS]            # on the machine with the GPU; RESULTS: $OUT, or day-results
#     FOLDER/day.sh run --dry-run [RESULTS]  # says what it would do
#     PARTS='kernels demo-*' FOLDER/day.sh run [RESULTS]      # only these parts (`gpu` and `program` always run)
#
# A part that fails, or takes too long, stops no other. RESULTS has report.md (the tables), results.tsv (a part a
# line), log.txt (all that was printed) and timings.jsonl (every run of what was timed). Exit code 1: a part failed, or
# there is no GPU. docs/build.md has more.
set -uo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MOST_BYTES=60000000
TOKENS=${TOKENS:-32760} # 81 frames of 832x480
SECONDS_IN_ALL=${SECONDS_IN_ALL:-570}
PARTS=${PARTS:-*}

usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 2
}

build() {
    local folder=${1:?} root target messages
    root=$(cd "$HERE/../.." && pwd)
    target=${CARGO_TARGET_DIR:-$root/target}
    set -e
    [ ! -e "$folder" ] || { echo "$folder is there already; give a new folder, or delete it" >&2; exit 1; }
    cd "$root"
    cargo build --release -p navicache --features cuda --bin navicache-cuda
    messages=$(cargo test --release -p navicache -p navicache-kernels -p navicache-engine --features navicache/cuda \
        --test cuda --no-run --message-format json)
    cd - >/dev/null
    local programs
    programs=$(mktemp -d)
    cp "$target/release/navicache-cuda" "$programs/"
    for crate in kernels engine; do
        cp "$(sed -n "s|.*crates/$crate/Cargo.toml.*\"executable\":\"\([^\"]*\)\".*|\1|p" <<<"$messages")" "$programs/test-$crate"
    done
    strip "$programs"/*
    mkdir -p "$folder"
    for crate in engine models; do # what the engine's test reads
        mkdir -p "$programs/$crate/tests" && cp -r "$root/crates/$crate/tests/golden" "$programs/$crate/tests/"
    done
    cp "$HERE/day.sh" "$HERE/torch_parts.py" "$folder/"
    # Programs share most of what they are: one window over all of them.
    tar -C "$programs" -c . | xz --lzma2=preset=2,dict=256MiB -c >"$folder/programs.tar.xz"
    rm -rf "$programs"
    git -C "$root" describe --always --dirty >"$folder/commit"
    local bytes
    bytes=$(cat "$folder"/* | wc -c)
    echo "$folder: $bytes bytes"
    [ "$bytes" -le $MOST_BYTES ] || { echo "that is more than $MOST_BYTES" >&2; exit 1; }
}

# One part: `part NAME MOST_SECONDS COMMAND ...`. Its output goes to the log, and to $WORK/NAME.
part() {
    local name=$1 most=$2 left=$((SECONDS_IN_ALL - SECONDS)) begun=$SECONDS state note
    shift 2
    wanted "$name" || return 0
    if [ -n "$dry" ]; then
        printf '%s (at most %s s):' "$name" "$most"
        printf ' %q' "$@"
        echo
        return
    fi
    if [ "$left" -lt 5 ]; then
        skip "no time is left" "$name"
        return
    fi
    [ "$most" -le "$left" ] || most=$left
    echo "== $name" | tee -a "$RESULTS/log.txt"
    timeout --kill-after=5 "$most" "$@" >"$WORK/$name" 2>"$WORK/$name.errors" </dev/null
    local code=$?
    cat "$WORK/$name" "$WORK/$name.errors" >>"$RESULTS/log.txt"
    case $code in
    0) state=ok note=$(grep -m1 '^test result' "$WORK/$name") ;;
    124 | 137) state=failed note="stopped after $most s" ;;
    *) state=failed note="exit code $code: $(said "$name")" ;;
    esac
    record "$name" $state $((SECONDS - begun)) "$note"
}

# Whether PARTS has it.
wanted() {
    local pattern patterns
    read -ra patterns <<<"gpu program $PARTS"
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053 # a pattern
        [[ $1 != $pattern ]] || return 0
    done
    return 1
}

# The line that tells most of what a part that failed has said.
said() {
    cat "$WORK/$1.errors" "$WORK/$1" | grep -m1 '^test result' || cat "$WORK/$1" "$WORK/$1.errors" | grep . | tail -n 1 | cut -c1-200
}

record() {
    [ -z "$dry" ] || return 0
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4//$'\t'/ }" >>"$RESULTS/results.tsv"
    echo "   $2, $3 s${4:+: $4}"
}

skip() {
    local why=$1
    shift
    for name in "$@"; do
        wanted "$name" || continue
        [ -n "$dry" ] || echo "== $name"
        record "$name" skipped 0 "$why"
    done
}

# A part that prints a timing, which is kept.
timed() {
    part "$@"
    [ -z "$dry" ] && grep -q '"median_seconds"' "$WORK/$1" 2>/dev/null || return 0
    printf '{"part": "%s", "timing": %s}\n' "$1" "$(tr -d '\n' <"$WORK/$1")" >>"$RESULTS/timings.jsonl"
}

milliseconds() { # of a part, or nothing
    sed -n 's/.*"median_seconds": *\([0-9.e-]*\).*/\1/p' "$WORK/$1" 2>/dev/null | head -n 1 | awk '{printf "%.2f", 1000 * $1}'
}

# The tables, whatever has happened so far.
report() {
    [ -z "$dry" ] || return 0
    {
        echo "# A GPU's day"
        echo
        echo "navicache $(cat "$HERE/commit" 2>/dev/null || echo "of an unknown commit"), $(date -u +%Y-%m-%d), $(grep -m1 . "$WORK/gpu" 2>/dev/null || echo "no GPU"), $SECONDS s"
        echo
        echo "| part | | seconds | |"
        echo "|---|---|---|---|"
        awk -F '\t' '{gsub(/\|/, "/"); printf "| %s | %s | %s | %s |\n", $1, $2, $3, $4}' "$RESULTS/results.tsv" 2>/dev/null
        echo
        echo "bf16, $TOKENS tokens, medians by events:"
        echo
        echo "| | navicache | PyTorch | ratio |"
        echo "|---|---|---|---|"
        local name ours theirs ratio
        for name in attention block forward; do
            ours=$(milliseconds "$name") theirs=$(milliseconds "torch-$name") ratio=
            [ -z "$ours" ] || [ -z "$theirs" ] || ratio=$(awk "BEGIN {printf \"%.2f\", $ours / $theirs}")
            echo "| $name | ${ours:+$ours ms} | ${theirs:+$theirs ms} | $ratio |"
        done
        echo
        echo "The demo, GPU beside CPU, f32, everything computed:"
        echo
        sed 's/^/    /' "$WORK/demo-metrics" 2>/dev/null
    } >"$RESULTS/report.md"
    cat "$RESULTS/report.md"
    rm -rf "$WORK"
}

# Folders with CUDA's libraries: an installed toolkit's, and those of a Python with PyTorch.
libraries() {
    local python=$1 folder
    for folder in /usr/local/cuda/lib64 "${CUDA_HOME:+$CUDA_HOME/lib64}"; do
        [ -n "$folder" ] && [ -e "$folder" ] && printf '%s:' "$folder"
    done
    [ -z "$python" ] || "$python" -c '
import pathlib, sys
for site in map(pathlib.Path, sys.path):
    for folder in sorted(site.glob("nvidia/*/lib")):
        print(folder, end=":")' 2>/dev/null
}

# The programs, by Python where there is no xz.
unpack() {
    mkdir "$WORK/programs"
    tar -C "$WORK/programs" -xJf "$HERE/programs.tar.xz" 2>/dev/null ||
        "${python:-python3}" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="fully_trusted")' \
            "$HERE/programs.tar.xz" "$WORK/programs"
}

run() {
    dry=
    [ "${1:-}" != --dry-run ] || { dry=yes; shift; }
    [ $# -le 1 ] || usage
    RESULTS=${1:-${OUT:-day-results}}
    local python ours=(attention block forward demo-cpu demo-gpu demo-cached demo-metrics) torch=(torch-attention torch-block torch-forward)
    python=$(command -v python3 || command -v python || true)
    LD_LIBRARY_PATH=$(libraries "$python")${LD_LIBRARY_PATH:-}
    export LD_LIBRARY_PATH PYTHONUNBUFFERED=1
    if [ -z "$dry" ]; then
        mkdir -p "$RESULTS" && RESULTS=$(cd "$RESULTS" && pwd) || exit 1
        rm -f "$RESULTS"/{report.md,results.tsv,log.txt,timings.jsonl}
        WORK=$(mktemp -d)
        trap report EXIT
        trap 'exit 1' INT TERM
        unpack || exit 1
    else
        WORK=/tmp/WORK
    fi
    local programs=$WORK/programs
    local program=$programs/navicache-cuda

    part gpu 30 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
    part program 60 "$program" gpus
    if [ -z "$dry" ] && ! grep -q "^program	ok" "$RESULTS/results.tsv"; then
        skip "no GPU that the program can use" kernels engine "${ours[@]}"
    else
        # Is it right?
        part kernels 150 "$programs/test-kernels" --include-ignored --test-threads 1
        part engine 60 env CARGO_MANIFEST_DIR="$programs/engine" "$programs/test-engine" --include-ignored --test-threads 1
        local demo=("$program" generate "a red circle bouncing on a navy background" --dtype f32)
        part demo-cpu 60 "${demo[@]}" --cache none --device cpu -o "$WORK/cpu.safetensors"
        part demo-gpu 60 "${demo[@]}" --cache none --device cuda -o "$WORK/gpu.safetensors"
        part demo-cached 60 "${demo[@]}" --cache navicache:mid --device cuda -o "$WORK/cached.safetensors"
        part demo-metrics 30 "$program" metrics "$WORK/cpu.safetensors" "$WORK/gpu.safetensors"
        # Is it fast?
        local name runs
        for name in attention block forward; do
            [ "$name" = forward ] && runs=3 || runs=7
            timed $name 120 "$program" bench $name --tokens "$TOKENS" --dtype bf16 --device cuda --runs $runs --json
        done
    fi
    if [ -z "$dry" ] && ! "${python:-false}" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        skip "no PyTorch with CUDA" "${torch[@]}"
    else
        local name runs
        for name in attention block forward; do
            [ "$name" = forward ] && runs=3 || runs=7
            timed torch-$name 90 "${python:-python3}" "$HERE/torch_parts.py" $name --tokens "$TOKENS" --runs $runs
        done
    fi
    [ -n "$dry" ] || ! grep -q "	failed	" "$RESULTS/results.tsv"
}

case ${1:-} in
build) [ $# = 2 ] || usage; build "$2" ;;
run) shift; run "$@" ;;
*) usage ;;
esac
