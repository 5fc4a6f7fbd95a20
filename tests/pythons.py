"""Finds the Pythons of this machine by version."""

import pathlib
import shutil
import subprocess
import sys

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def running():
    """The version of the Python that runs this."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def interpreter(version):
    """A Python of this version: the one that runs this, one on the path, or one that pyenv built."""
    if version == running():
        return sys.executable
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    built = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not built:
        sys.exit(f"There is no Python {version} on the path, nor one of pyenv.")
    return built[-1]
