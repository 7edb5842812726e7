#!/usr/bin/env bash
# Runs a published model here and in diffusers, on the same seed, and prints what agrees as a page of Markdown: docs/real.md.
#
#     tools/real/check.sh MODEL [OPTIONS] [-- OPTIONS OF NAVICACHE]
#
#   MODEL            a name that `navicache models` lists, a repository as OWNER/NAME, or a Diffusers folder
#   --out DIR        folder for all that is made [check-MODEL]; a table that was begun there goes on
#   --size WxH       [256x160; CogVideoX-5b-I2V knows 720x480 alone]
#   --frames N       [9]
#   --steps N        [20]
#   --seed N         [0]
#   --image FILE     picture to start from [drawn, for models that need one]
#   --prompts FILE   prompts of the methods' table, a line each [tools/real/prompts.txt]
#   --methods LIST   methods of the table [none,steps=STEPS/2,navicache:mid,stride:mid]
#   --no-table       without it
#   --memory GIB     most memory that each side may use [24]
#   --navicache FILE the program [target/release/navicache]
#   --python FILE    a Python that has requirements.txt [a virtual environment of its own, in DIR/python]
#
# What follows -- is given to navicache alone, as in -- --transformer wan-Q8_0.gguf: another packaging against the folder.
# Exit codes: 0 all parts agree; 1 some do not, and which; 2 it could not be tried.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$here/../..

main() {
    arguments "$@"
    programs
    weights
    ours
    reference
    table
    page
}

fail() {
    echo "check.sh: $*" >&2
    exit 2
}

arguments() {
    model='' out='' size='' frames=9 steps=20 seed=0 image='' prompts=$here/prompts.txt methods='' with_table=1 memory=24
    navicache=$repository/target/release/navicache python='' extra=()
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) sed -n '2,/^# Exit/s/^# \{0,1\}//p' "$0" && exit 0 ;;
            --no-table) with_table='' && shift && continue ;;
            --) shift && extra=("$@") && break ;;
            --out | --size | --frames | --steps | --seed | --image | --prompts | --methods | --memory | --navicache | --python)
                [ $# -gt 1 ] || fail "$1: expected a value"
                printf -v "${1#--}" %s "$2" && shift 2 && continue ;;
            -*) fail "$1: unknown option; see $0 --help" ;;
            *) [ -z "$model" ] || fail "$1: expected one model" && model=$1 && shift ;;
        esac
    done
    [ -n "$model" ] || fail "expected a model; see $0 --help"
    out=${out:-check-$(basename "$model")}
    methods=${methods:-none,steps=$((steps / 2)),navicache:mid,stride:mid}
    mkdir -p "$out"
}

programs() {
    navicache=$(command -v "$navicache") || fail "no navicache there: cargo build --release -p navicache, or give --navicache FILE"
    if [ -z "$python" ]; then
        python=$out/python/bin/python
        [ -x "$python" ] || python3 -m venv "$out/python"
        "$python" -m pip install --quiet -r "$here/requirements.txt" || fail "the reference could not be installed"
    fi
    "$python" -c 'import diffusers, transformers, accelerate' || fail "$python lacks the reference: pip install -r $here/requirements.txt"
}

# The Diffusers folder that both sides read.
weights() {
    if [ -d "$model" ]; then
        folder=$model
    else
        published=$(diffusers_repository "$model")
        folder=$("$navicache" pull --quiet "$published") || fail "$model could not be pulled"
    fi
    [ -f "$folder/model_index.json" ] || fail "$folder: expected a Diffusers folder (with model_index.json)"
    pipeline=$(sed -n 's/.*"_class_name": *"\([^"]*\)".*/\1/p' "$folder/model_index.json" | head -1)
    negative='blurred, static, low quality'
    case $pipeline in
        WanPipeline | CogVideoXPipeline) ;;
        HunyuanVideoPipeline) negative='' ;; # it has no second branch
        WanImageToVideoPipeline | CogVideoXImageToVideoPipeline) needs_picture=1 ;;
        *) fail "$folder: $pipeline: expected a pipeline of Wan, HunyuanVideo or CogVideoX" ;;
    esac
    if [ -z "$size" ]; then
        size=256x160
        # Places that were learned are of one size.
        if grep -qs '"use_learned_positional_embeddings": true' "$folder/transformer/config.json"; then size=720x480; fi
    fi
    if [ -z "$image" ] && [ -n "${needs_picture:-}" ]; then
        image=$out/picture.png
        "$python" "$here/reference.py" --draw "$size" "$image"
    fi
}

diffusers_repository() {
    case $1 in
        */*) echo "$1" ;;
        wan2.1-t2v-1.3b) echo Wan-AI/Wan2.1-T2V-1.3B-Diffusers ;;
        wan2.1-t2v-14b) echo Wan-AI/Wan2.1-T2V-14B-Diffusers ;;
        wan2.1-i2v-14b-480p) echo Wan-AI/Wan2.1-I2V-14B-480P-Diffusers ;;
        wan2.1-i2v-14b-720p) echo Wan-AI/Wan2.1-I2V-14B-720P-Diffusers ;;
        wan2.2-ti2v-5b) echo Wan-AI/Wan2.2-TI2V-5B-Diffusers ;;
        wan2.2-t2v-a14b) echo Wan-AI/Wan2.2-T2V-A14B-Diffusers ;;
        wan2.2-i2v-a14b) echo Wan-AI/Wan2.2-I2V-A14B-Diffusers ;;
        hunyuanvideo) echo hunyuanvideo-community/HunyuanVideo ;;
        cogvideox-2b) echo zai-org/CogVideoX-2b ;;
        cogvideox-5b) echo zai-org/CogVideoX-5b ;;
        cogvideox-5b-i2v) echo zai-org/CogVideoX-5b-I2V ;;
        cogvideox1.5-5b) echo zai-org/CogVideoX1.5-5B ;;
        cogvideox1.5-5b-i2v) echo zai-org/CogVideoX1.5-5B-I2V ;;
        open-sora-1.2) fail "open-sora-1.2: diffusers has no pipeline for it; crates/models/tests/opensora.rs checks it against the authors' code" ;;
        *) fail "$1: expected a folder, OWNER/NAME, or a name that navicache models lists" ;;
    esac
}

run_ours() {
    local command=$1
    shift
    [[ " ${extra[*]} " == *" --device "* ]] || set -- "$@" --device cpu
    "$navicache" "$command" "$@" --model "$folder" --size "$size" --frames "$frames" --steps "$steps" -n "$negative" \
        ${image:+--image "$image"} --memory "${memory}GiB" "${extra[@]}"
}

# In f32, as the reference, everything computed and nothing decoded in tiles.
ours() {
    prompt=$(head -1 "$prompts")
    run_ours parts "$prompt" --seed "$seed" --dtype f32 -o "$out/parts.safetensors"
    run_ours generate "$prompt" --seed "$seed" --dtype f32 --cache none --tile off --preview off -o "$out/frames.safetensors" \
        --save-latents "$out/latents.safetensors" --report "$out/report.json"
}

reference() {
    "$python" "$here/reference.py" "$folder" --like "$out/report.json" --memory "$memory" --out "$out/reference.safetensors" ||
        fail "the reference could not be run"
}

# The methods on ten prompts, in the numbers that navicache takes by itself.
table() {
    [ -n "$with_table" ] || return 0
    local lines
    mapfile -t lines <"$prompts"
    run_ours compare "${lines[@]}" --seeds "$seed" --methods "$methods" -o "$out/compare"
}

page() {
    "$python" "$here/page.py" "$out" --model "$model" --command "tools/real/check.sh $model --size $size --frames $frames --steps $steps --seed $seed" \
        --navicache "$navicache" ${extra[0]:+--with "${extra[*]}"} | tee "$out/page.md"
}

main "$@"
