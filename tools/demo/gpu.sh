#!/bin/bash
# Trains within SECONDS on one GPU and leaves in OUT, whenever it is cut off: vae.pt and dit.pt (all that is needed to go on), log.txt,
# compiled.tgz, and at the end sheet.png.
#
#   gpu.sh OUT SECONDS         begins with the model in the repository
#   gpu.sh OUT SECONDS FROM    goes on from an earlier OUT: polishes the decoder while the transformer's kernels are compiled
#
# To stop it for a while: kill -STOP -$(cat OUT/group), then kill -CONT. From the environment: VAE_SHARE, of the time; BATCH, VAE_BATCH;
# PEAK and END, the transformer's learning rates as factors; PYTHON; MODEL; EXTRA,
# more options of train.py.
set -u
[ -n "${DEMO_GROUP:-}" ] || DEMO_GROUP=own exec setsid --wait bash "$0" "$@"
out=$1 seconds=$2 from=${3:-}
end=$(($(date +%s) + seconds))
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd)
echo $$ > "$out/group"
exec > >(tee -a "$out/log.txt") 2>&1
export TORCHINDUCTOR_CACHE_DIR=${TMPDIR:-/tmp}/demo-compiled PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$TORCHINDUCTOR_CACHE_DIR"
train="${PYTHON:-python3} $here/train.py"
common="--work $out --model ${MODEL:-$here/../../crates/engine/demo} --threads ${THREADS:-4} --save-every ${SAVE_EVERY:-45} --every ${EVERY:-100} ${EXTRA:-}"
phase=clips share=${VAE_SHARE:-0.42} peak=${PEAK:-1.0} last=${END:-0.25}
rm -f "$out/vae.ready"
if [ -n "$from" ]; then
    cp "$from/vae.pt" "$from/dit.pt" "$out/" || exit
    [ -f "$from/compiled.tgz" ] && tar -xzf "$from/compiled.tgz" -C "$TORCHINDUCTOR_CACHE_DIR"
    phase=decoder share=${VAE_SHARE:-0.25} peak=${PEAK:-0.6} last=${END:-0.01}
    touch "$out/vae.ready"
fi
echo "$(date +%T) $phase $share, peak $peak to $last, $seconds s"

# A stage that fails is tried again in plainer ways.
stage() {
    for how in "--graph on --compile on" "--graph on --compile off" "--graph off --compile off"; do
        [ $(($(date +%s) + 15)) -lt $end ] || return
        $train "$@" $common $how && return
        echo "$(date +%T) $1 failed with $how"
    done
}

dit() {
    stage dit --deadline $((end - ${SHEET:-15})) --batch "${BATCH:-256}" --bank "${BANK:-24576}" --clips "${CLIPS:-8192}" \
        --peak "$peak" --end "$last" --out "$out"
}

dit & dit=$!
if [ "$share" = 0 ]; then
    touch "$out/vae.ready"
else
    stage vae --phase $phase --deadline $end --share "$share" --batch "${VAE_BATCH:-8}" --peak "${VAE_PEAK:-1.0}"
    touch "$out/vae.ready"  # whatever came of it, the transformer goes on with the last VAE saved
fi
wait $dit
tar -czf "$out/compiled.part" -C "$TORCHINDUCTOR_CACHE_DIR" . && mv "$out/compiled.part" "$out/compiled.tgz"
rm -f "$out/vae.ready" "$out/group"
echo "$(date +%T) done"
