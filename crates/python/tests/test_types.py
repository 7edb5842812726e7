"""Types: the stubs say what the module has, and the package checks in mypy's strict mode."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: pip install navicache[test]")
HERE = pathlib.Path(__file__).parent


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stubs_are_those_of_the_module(tmp_path):
    run("-m", "mypy.stubtest", "navicache._core")


def test_the_package_and_its_use_are_well_typed(tmp_path):
    config = HERE.parent / "pyproject.toml"
    run("-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), "typed_use.py")


SOURCE = HERE.parent / "python"
# Those that import a framework are checked where it is.
MODULES = ["families", "native", "offline", "report", "errors", "options"]


def test_the_package_itself_is_well_typed(tmp_path):
    config = HERE.parent / "pyproject.toml"
    names = [part for module in MODULES for part in ("-m", f"navicache.{module}")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), *names],
        capture_output=True, text=True, cwd=SOURCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
