#!/usr/bin/env python3
"""Calls the program wrongly, some hundred times, and looks at what it does.

    python3 tools/robust/wrong_calls.py target/release/navicache [CALLS] [SEED]

Run it in a throwaway place: a container, or `unshare -m` with a /dev of its own. Every call has one fault, or two: an
option with a value that makes no sense, a file that is missing, cut, of another kind, a device, a FIFO, a folder, or an
output that cannot be written. Of each call this must hold:

* the exit code is 1 or 2; no signal, no panic, no exit code 0, and no more than a minute,
* the last line says something, and does not say that the program has a mistake,
* devices, FIFOs and all input files are what they were, byte for byte,
* no file lies where the output was to be, and no temporary file beside it; but a video stays whose report is lost.

Only the standard library is used. The exit code is 1 if a call failed one of these; all of them are listed.
"""

import hashlib
import os
import random
import stat
import subprocess
import sys
import tempfile
import zlib

NUMBERS = ["", "-1", "x", "1e999", "nan", "-inf", "99999999999999999999999", "0x10", "1,5", " 4", "٣", "18446744073709551616"]

# Options of `generate` and values that none of them takes.
WRONG = {
    "--steps": NUMBERS + ["0", "1001", "2.5"],
    "--frames": NUMBERS + ["0", "2", "3", "1000001", "4294967296"],
    "--fps": NUMBERS + ["0", "1001", "0.5", "24/0", "24fps"],
    "--size": NUMBERS + ["0x0", "64", "64x", "x64", "65x64", "64x64x64", "-64x64", "16777216x16777216", "1e2x64"],
    "--resolution": NUMBERS + ["480q", "0p", "99999999p"],
    "--aspect-ratio": ["", "1:0", "0:1", "x:y", "nan:1", "-1:2", "1:2:3", "inf:1"],
    "--guidance": ["", "-1", "x", "nan", "inf", "1e999", "1,5"],
    "--shift": ["", "0", "-1", "x", "nan", "inf"],
    "--seed": ["", "-2", "x", "1.5", "99999999999999999999999"],
    "--seeds": ["", "1,,2", "x", "1;2", "5..1"],
    "--solver": ["", "heun", "UniPC2", "unipc,euler"],
    "--cache": [
        "", "teecache", "navicache:warp", "navicache,threshold=x", "navicache,threshold=-1", "navicache,threshold=nan",
        "navicache,treshold=0.1", "navicache,threshold", "easycache,threshold=0.1,threshold=0.2", "stride,reuse=residual",
        "schedule:/nonexistent", "@/nonexistent", "navicache:mid,steps=20", "pab,window=5", ",", ":", "=", "none,none",
    ],
    "--target": ["", "speedup=0", "speedup=x", "speedup=1e9", "work=200%", "steps=0", "steps=x", "time=", "time=-1s", "quality=2", "speedup=2,curve=/nonexistent"],
    "--guard": ["", "maybe", "ACT!"],
    "--cache-memory": ["", "x", "-1", "12QB", "1e999GB"],
    "--memory": ["", "x", "-1GiB", "0"],
    "--tile": ["", "x", "-1", "0", "1.5"],
    "--device": ["", "cuda:999", "tpu", "cpu:1:2", "metal"],
    "--dtype": ["", "f8", "int4", "float"],
    "--threads": NUMBERS + ["0"],
    "--max-sequence-length": NUMBERS + ["0", "1000000"],
    "--checkpoint-every": ["", "0", "x", "-1"],
    "--stop-after": ["", "0", "x", "-1"],
    "--lora": ["", "/nonexistent.safetensors", "/nonexistent:x", ":"],
}

# Options of `generate` that open a file.
FILES = [
    "--model", "--transformer", "--text-encoder", "--vae", "--image-encoder", "--tokenizer", "--lora", "--image",
    "--latents", "--resume", "--resume-decode", "--prompts",
]
OUTPUTS = ["--output", "--report", "--save-latents", "--checkpoint"]
# Options of `serve` and values that none of them takes.
SERVE = {
    "--port": NUMBERS + ["65536"],
    "--host": ["", "no.such.host.invalid", "256.1.1.1", "0.0.0.0"],
    "--max-queue": NUMBERS,
    "--max-steps": NUMBERS + ["0"],
    "--max-video": ["", "x", "64x64", "0x0x0", "64x64x-1"],
    "--max-upload": ["", "x", "-1"],
    "--keep": ["", "x", "-1d", "1.5h"],
    "--keep-bytes": ["", "x", "-1GB"],
    "--grace": ["", "x", "-1s"],
    "--checkpoint-every": ["", "0", "x", "-1"],
    "--metrics-listen": ["", "x", "127.0.0.1", "127.0.0.1:99999"],
    "--cors": ["", "*", "http://a b"],
    "--device": ["", "tpu"],
    "--dtype": ["", "f8"],
    "--threads": NUMBERS + ["0"],
    "--memory": ["", "x", "-1GiB"],
}
SERVE_FILES = ["--model", "--keys", "--data", "--tls-cert", "--tls-key"]
# What each of the other commands reads.
READERS = [
    ["inspect"], ["estimate", "--model"], ["replay"], ["tune"], ["metrics", "{same}"], ["decode"], ["compare", "--from"],
    ["generate", "a ring", "--cache", "schedule:{}"], ["generate", "a ring", "--cache", "@{}"], ["replay", "--cache", "x"],
]


def bad_files(folder):
    """Inputs that nobody can use. -> paths"""
    def write(name, content):
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    noise = random.Random(0).randbytes(5000)
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,16]}}'
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    png += zlib.crc32(png[12:]).to_bytes(4, "big")
    paths = [
        write("empty.safetensors", b""),
        write("cut.safetensors", (1 << 40).to_bytes(8, "little")),
        write("huge.safetensors", len(header).to_bytes(8, "little") + header + bytes(16)),
        write("noise.safetensors", noise),
        write("noise.gguf", b"GGUF" + noise),
        write("noise.pth", b"PK\x03\x04" + noise),
        write("noise.mp4", b"\0\0\0\x18ftypisom" + noise),
        write("cut.y4m", b"YUV4MPEG2 W64 H64 F16:1 C420jpeg\nFRAME\n" + bytes(100)),
        write("large.y4m", b"YUV4MPEG2 W4294967295 H4294967295 F16:1\nFRAME\n"),
        write("large.png", png),
        write("noise.jpg", b"\xff\xd8\xff\xe0" + noise),
        write("deep.json", b"[" * 200000),
        write("other.json", b'{"version": 99, "steps": "many"}'),
        write("lines.jsonl", b"{}\n{]\n"),
        write("latin1.txt", "café\n".encode("latin-1")),
        write("nul.txt", b"a\0b\n"),
        write("name with \xff.bin".encode("latin-1").decode("latin-1"), noise),
        "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/nonexistent/x.mp4", folder, "", "~/x.mp4", "http://example.org/x.mp4",
    ]
    fifo = os.path.join(folder, "fifo.mp4")
    os.mkfifo(fifo)
    loop = os.path.join(folder, "loop.png")
    os.symlink(loop, loop)
    return paths + [fifo, loop]


def bad_outputs(folder, kind):
    """Outputs that cannot be, or must not be, written. A folder is one that can: of pictures."""
    folders = [] if kind == "--output" else [folder]
    ending = {"--report": ".json", "--save-latents": ".safetensors", "--checkpoint": ".ckpt"}.get(kind, ".mp4")
    return [
        "", "/nonexistent/out" + ending, "/dev/full", "/proc/out" + ending,
        os.path.join(folder, "a" * 300 + ending), os.path.join(folder, "cut.y4m", "out" + ending), *folders,
    ]


def calls(folder, count, seed):
    """The arguments of so many wrong calls."""
    rng, inputs = random.Random(seed), bad_files(folder)
    quick = ["--steps", "2", "--frames", "5", "--size", "32x32", "--cache", "none", "-q"]
    out = os.path.join(folder, "OUT.mp4")
    made = []
    for option, values in WRONG.items():
        made += [["generate", "a ring", "-o", out, f"{option}={value}"] for value in values]
    for option in FILES:
        made += [["generate", "a ring", "-o", out, *quick, f"{option}={path}"] for path in inputs]
    for option in OUTPUTS:
        keep = [] if option == "--output" else ["-o", out]
        made += [["generate", "a ring", *keep, *quick, f"{option}={path}"] for path in bad_outputs(folder, option)]
    for command in READERS:
        for path in inputs:
            filled = [part.replace("{same}", path) for part in command]
            places = any("{}" in part for part in filled)
            made.append([part.replace("{}", path) for part in filled] if places else [*filled, path])
    made.remove(["inspect", folder])  # which says what a folder lacks
    serve = ["serve", "--port", "0", "--data", folder + "-data"]
    made += [[*serve, f"{option}={value}"] for option, values in SERVE.items() for value in values]
    readable = [path for path in inputs if path not in (folder, "")]
    # A server whose keys are none lets nobody in, until one is made.
    made += [[*serve, f"{option}={path}"] for option in SERVE_FILES if option != "--data" for path in readable if (option, path[-17:]) != ("--keys", "empty.safetensors")]
    made += [["serve", "--port", "0", f"--data={path}"] for path in inputs if "nonexistent" not in path and path not in (folder, "", "~/x.mp4", "http://example.org/x.mp4")]
    made += [["serve", "key", "list", f"--keys={path}"] for path in inputs if "empty" not in path]  # no keys
    made += [["serve", "key", "revoke", "nobody", f"--keys={path}"] for path in inputs]
    made += [["serve", "key", "new", "me", f"--keys={path}"] for path in [folder, "", "/dev/full", "/proc/keys", os.path.join(folder, "noise.gguf")]]
    weights = os.path.join(folder, "noise.safetensors")
    made += [["convert", path, "-o", os.path.join(folder, "OUT.safetensors")] for path in inputs]
    made += [["convert", "demo", "-o", path] for path in ["", "/nonexistent/x", "/dev/null", "/dev/full", "/proc/x", weights]]
    made += [["convert", "demo", "-o", os.path.join(folder, "OUT"), f"--type={value}"] for value in ["", "q9", "int4", "F99"]]
    made += [["convert", "demo", "-o", os.path.join(folder, "OUT"), f"--lora={path}"] for path in inputs]
    made += [["models", "rm", name] for name in ["", "no such model", "../..", "a/b/c", "/", "wan2.1-t2v-1.3b", "-"]]
    made += [["models", "rm"], ["config", "no-such-command"], ["config", "generate", "x"], ["doctor", "x"], ["doctor", "--jsn"]]
    made += [["serve", "key"], ["serve", "key", "new"], ["serve", "x"], ["convert"], ["convert", "demo"], ["man", "/dev/null"]]
    made += [
        [], ["generat"], ["generate"], ["generate", "a", "b"], ["generate", "--sise", "1"],
        ["generate", "a ring", "--resolution", "480p", "--size", "64x64", "--frames", "x"], ["pull"], ["pull", "no such model"],
        ["models", "x", "y"], ["completions", "tcsh"], ["methods", "teecache"], ["bench", "nothing"], ["vbench"],
    ]
    # Two faults at once
    options = [(option, value) for option, values in WRONG.items() for value in values]
    while len(made) < count:
        (a, x), (b, y) = rng.sample(options, 2)
        if a != b:
            made.append(["generate", "a ring", "-o", out, f"{a}={x}", f"{b}={y}"])
    return rng.sample(made, count)


def fingerprint(folder):
    """What lies in a folder and in /dev. -> {path: what it is}"""
    found = {}
    for path in ["/dev/null", "/dev/full", "/dev/zero", *(os.path.join(folder, name) for name in os.listdir(folder))]:
        mode = os.lstat(path).st_mode
        content = ""
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        found[path] = (stat.S_IFMT(mode), content)
    return found


def wrong_with(program, arguments, folder):
    """What is wrong with the answer to a call; nothing, if all is well."""
    before = fingerprint(folder)
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": folder, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": folder + "-cache"}
    try:
        done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=environment, cwd=folder)
    except subprocess.TimeoutExpired:
        return ["took more than a minute"]
    words = done.stderr.decode("utf-8", "replace").strip()
    faults = []
    if done.returncode < 0:
        faults.append(f"signal {-done.returncode}")
    elif done.returncode not in (1, 2):
        faults.append(f"exit code {done.returncode}")
    if "panicked" in words or "RUST_BACKTRACE" in words or "bug" in words.lower().split():
        faults.append("panic: " + words[-300:])
    if not words:
        faults.append("says nothing")
    after = fingerprint(folder)
    may_stay = arguments[2:4][-1:] if any(argument.startswith("--report") for argument in arguments) else []
    for path in sorted((before.keys() | after.keys()) - set(may_stay)):
        if before.get(path) != after.get(path):
            faults.append(f"{path}: was {before.get(path)}, is {after.get(path)}")
    return faults


def main():
    program = os.path.abspath(sys.argv[1])
    count, seed = [int(v) for v in sys.argv[2:] + ["500", "0"][len(sys.argv) - 2 :]]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        made = calls(folder, count, seed)
        for arguments in made:
            if any("\0" in argument for argument in arguments):
                continue
            faults = wrong_with(program, arguments, folder)
            if faults:
                failed += 1
                print(" ".join(map(repr, arguments)))
                print("".join(f"    {fault}\n" for fault in faults), end="", flush=True)
    print(f"{count} wrong calls, {failed} answered wrongly")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
