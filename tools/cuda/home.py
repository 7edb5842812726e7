"""Makes a folder that builds look for as CUDA_HOME, out of the Python registry's wheels: no root, no driver, no GPU.

    python tools/cuda/home.py FOLDER        # 0.7 GB to download, 1.2 GB on disk
    export CUDA_HOME=FOLDER PATH=FOLDER/bin:$PATH

What the wheels lack is added: libraries under the names that a linker looks for, `lib64` beside `lib`, and in `lib/stubs` a libcuda that has
every name of cuda.h and always fails, as an installed toolkit has. The true one comes with the driver. Needs pip and a C compiler.
"""
import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cublas==13.1.2.11",
    "nvidia-curand==10.4.5.25",
]
STUB_LIBRARY = 34  # CUDA_ERROR_STUB_LIBRARY


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    home = parser.parse_args().folder.resolve()
    if home.exists():
        sys.exit(f"{home} is there already; give a new folder, or delete it")
    unpack(home)
    (home / "lib64").symlink_to("lib")
    for library in (home / "lib").glob("*.so.*"):
        link = library.with_name(library.name.split(".so.")[0] + ".so")
        if not link.exists():
            link.symlink_to(library.name)
    write_stub((home / "include/cuda.h").read_text(), home / "lib/stubs")
    print(f"export CUDA_HOME={home} PATH={home}/bin:$PATH")


def unpack(home):
    """The wheels share one folder, which becomes the home."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as site:
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", site]
        subprocess.run(install + WHEELS, check=True, stdout=sys.stderr)
        shutil.move(pathlib.Path(site) / "nvidia/cu13", home)


def write_stub(header, folder):
    """A libcuda with every function that the header declares or maps to another version of it."""
    names = set(re.findall(r"\bCUDAAPI\s+(cu\w+)\s*\(", header))
    names |= set(re.findall(r"#\s*define\s+cu\w+\s+(?:__CUDA_API_\w+\()?(cu\w+)", header))
    names |= {name + "_ptsz" for name in names} | {name + "_ptds" for name in names}
    folder.mkdir()
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return {STUB_LIBRARY}; }}\n" for name in sorted(names)))
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    source.unlink()
    (folder / "libcuda.so").symlink_to(library.name)


if __name__ == "__main__":
    main()
