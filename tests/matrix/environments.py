"""The environments of the matrix, each with the newest or the oldest versions that ``pyproject.toml`` allows."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
from dataclasses import dataclass, field

from pythons import PYTHONS, interpreter

ROOT = pathlib.Path(__file__).parents[2]
_CHOSEN = {"KERAS_BACKEND", "TF_USE_LEGACY_KERAS"}


@dataclass(frozen=True)
class Environment:
    """``folder`` is its name below the environments; without a ``python`` it is one that ``make`` has made there."""

    name: str
    folder: str
    python: str | None = None
    age: str = "newest"
    extra: str = "tensorflow"
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def keras(self):
        return "tf_keras" if "TF_USE_LEGACY_KERAS" in self.variables else "keras"

    @property
    def backend(self):
        return self.variables.get("KERAS_BACKEND", "tensorflow")

    def made(self, environments, uv):
        """Its interpreter; it is made if it is not there, or if ``pyproject.toml`` is another one since."""
        folder = environments.absolute() / self.folder
        python, ready = folder / "bin" / "python", folder / ".ready"
        wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
        if self.python is not None and not (ready.exists() and ready.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([uv, "venv", "--quiet", "--python", interpreter(self.python), folder], check=True)
            resolution = ["--resolution", "lowest-direct"] if self.age == "oldest" else []
            install = [uv, "pip", "install", "--quiet", "--python", python, *resolution, "-e", f".[{self.extra}]"]
            subprocess.run(install, check=True, cwd=ROOT)
            ready.write_text(wanted)
        return python

    def process_environment(self):
        """The variables of a process in it, whatever is chosen outside."""
        kept = {name: value for name, value in os.environ.items() if name not in _CHOSEN}
        # Every load that follows is a proof.
        return {**kept, "PROVE": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **self.variables}

    def versions(self, python):
        """What is installed, by the names of the table's columns."""
        names = [self.keras.replace("_", "-"), {"keras": self.backend}.get(self.keras, "tensorflow")]
        names += ["mlflow", "cloudpickle", "numpy"]
        code = (
            "import importlib.metadata as m, json, platform;"
            f"print(json.dumps([platform.python_version(), *(m.version(name) for name in {names!r})]))"
        )
        done = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True)
        version, keras, backend, *rest = json.loads(done.stdout)
        return [version, f"{names[0]} {keras}", f"{names[1]} {backend}", *rest]


def of_python(version):
    """One Python, with TensorFlow."""
    ages = ("newest", "oldest")
    return [Environment(f"{version}-{age}", f"matrix-{version}-{age}", python=version, age=age) for age in ages]


_LEGACY = {"TF_USE_LEGACY_KERAS": "1"}
ENVIRONMENTS = [
    *sorted((item for python in PYTHONS for item in of_python(python)), key=lambda item: item.age),
    Environment("jax", "jax", variables={"KERAS_BACKEND": "jax"}),
    Environment("torch", "torch", variables={"KERAS_BACKEND": "torch"}),
    Environment("tf_keras-newest", "tf-keras", variables=_LEGACY),
    Environment("tf_keras-oldest", "matrix-tf-keras-oldest", "3.10", "oldest", "tf-keras", _LEGACY),
]
