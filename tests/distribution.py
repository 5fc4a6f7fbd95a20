"""``python tests/distribution.py DIST``: installs the wheel and the sdist in DIST in clean environments of each Python.

Each environment holds what the package asks for and nothing else; in an empty folder, a model of a script there is
logged with its proof and served from the file system, and the command line reads it. Needs uv and nothing else.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from pythons import PYTHONS, interpreter

HERE = pathlib.Path(__file__).parent


def main():
    arguments = argparse.ArgumentParser(prog="tests/distribution.py", description=__doc__)
    arguments.add_argument("dist", type=pathlib.Path, help="the folder with one wheel and one sdist")
    arguments.add_argument("--uv", default="uv", help="the uv to install with")
    arguments.add_argument("--pythons", default=",".join(PYTHONS), help="comma-separated versions")
    options = arguments.parse_args()
    files = [*options.dist.absolute().glob("*.whl"), *options.dist.absolute().glob("*.tar.gz")]
    if [file.suffix for file in files] != [".whl", ".gz"]:
        sys.exit(f"{options.dist}: expected one wheel and one sdist, got {[file.name for file in files]}. make build.")
    failed = [python for python in options.pythons.split(",") if not works(python, files, options.uv)]
    return f"Failed with Python {', '.join(failed)}." if failed else 0


def works(python, files, uv):
    """Whether each of ``files`` installs in an environment of ``python``, and does there what it is for."""
    with tempfile.TemporaryDirectory(prefix="distribution-") as folder:
        home = pathlib.Path(folder, "environment")
        subprocess.run([uv, "venv", "--quiet", "--python", interpreter(python), home], check=True)
        for file in files:
            install = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                home,
                "--reinstall-package",
                "mlflow-keras-subclass",
            ]
            subprocess.run([*install, f"{file}[tensorflow]"], check=True)
            empty = pathlib.Path(tempfile.mkdtemp(dir=folder))
            command = [home / "bin/python", "-I", HERE / "installed.py", version_in(file), empty]
            done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
            print(f"Python {python}, {file.name}: {done.stdout.strip() or done.stderr[-2000:]}", flush=True)
            if done.returncode:
                return False
    return True


def version_in(file):
    return file.name.removesuffix(".tar.gz").split("-")[1]


if __name__ == "__main__":
    sys.exit(main())
