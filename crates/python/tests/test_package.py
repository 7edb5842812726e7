"""What an installed package promises before anything is run."""

import subprocess
import sys

import navicache


def test_it_has_the_version_of_its_metadata():
    from importlib.metadata import version

    assert navicache.__version__ == version("navicache")


def test_importing_it_imports_no_framework():
    code = "import sys, navicache; print([m for m in ('torch', 'diffusers', 'ray') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"
