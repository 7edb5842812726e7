#!/usr/bin/env bash
# The Python package on a GPU: the tests of the adapter there, then what caching costs and saves. About two minutes.
#
#   tools/python/gpu.sh OUT [DEVICE] [SECONDS] [TEST ...]
#
# DEVICE: cuda; with cpu the script itself is tried, on small models. SECONDS: of each of the two halves, at most, 10 more
# where one has to be stopped, after half a minute of a first import on a machine that has just begun. TEST: files in
# crates/python/tests, in the place of all that take a GPU. Other work on the GPU makes the tests ten times slower.
# The package, torch, diffusers, accelerate, transformers, peft, pytest and pytest-xdist must be there (PYTHONPATH).
# OUT/python.txt has everything that was said, OUT/python.json what was measured. What fails stops nothing else.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?where to}
device=${2:-cuda} seconds=${3:-55}
tests=("${@:4}")
[ ${#tests[@]} -gt 0 ] || tests=(test_gpu.py test_ranks.py test_surroundings.py test_solvers.py test_blocks.py test_diffusers.py)
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 NAVICACHE_TEST_DEVICE=$device
# Sums of one shape are made in one order.
export CUBLAS_WORKSPACE_CONFIG=:4096:8
small=() spread=(-n 6 --dist worksteal)
[ "$device" = cpu ] && small=(--small)
python3 -c 'import xdist' 2>/dev/null || spread=()

say() { echo "== $1 ($SECONDS s)"; }
bench() { # name, parts...
    timeout -k 5 -s INT "$((seconds + 10))" python3 crates/python/benches/gpu.py "$work/bench" "${@:2}" \
        --device "$device" --seconds "$seconds" "${small[@]}" >"$work/$1.log" 2>&1
}

say "import"
python3 -c 'import torch, transformers, accelerate, peft, diffusers, navicache.diffusers; diffusers.WanPipeline' >"$work/tests.log" 2>&1
say "tests"
(cd crates/python/tests && timeout -k 5 -s INT "$((seconds + 10))" python3 -m pytest "${spread[@]}" -v -p no:cacheprovider \
    --tb=short --durations=10 -rfEs "${tests[@]}" \
    --deselect test_diffusers.py::test_two_hundred_runs_hold_no_more_than_one) >>"$work/tests.log" 2>&1
say "time, with the GPU to itself"
bench timing overhead saved busy memory
say "end"

{
    python3 - <<'PYTHON'
import navicache
try:
    navicache.generate("demo", "a red circle", device="cuda")
except Exception as error:
    print(f"the engine's door, device='cuda': {type(error).__name__}: {error}")
PYTHON
    cat "$work"/tests.log "$work"/timing.log
} >"$out/python.txt" 2>&1
python3 - "$work/bench" >"$out/python.json" <<'PYTHON'
import json, pathlib, sys
print(json.dumps([row for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")) for row in json.loads(path.read_text())], indent=1))
PYTHON
grep -hE '^(FAILED|ERROR|=+ .* in |[0-9]+ (passed|failed))' "$work/tests.log" | cut -c1-220 | tail -40
grep -hE '^(machine|overhead|saved|memory|busy) ' "$work/timing.log" | cut -c1-420
