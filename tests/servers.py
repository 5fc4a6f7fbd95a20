"""MLflow's servers in processes of their own, for tests and benchmarks, and a Python that lacks this package."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import site
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from elsewhere import background, free_port

PACKAGE = "mlflow_keras_subclass"

# Editable installs are found by a .pth file, which the new environment does not read; this is for the other installs.
_BLOCKER = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {PACKAGE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server: its address, the process that leads its group, and its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
        """Status and body of the answer of ``/invocations``."""
        request = urllib.request.Request(f"{self.url}/invocations", body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def send(self, body: bytes, content_type: str | None) -> tuple[int, bytes]:
        """The same for anything: urllib gives a body without a type one of its own, and refuses some types."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/invocations")
            connection.putheader("Content-Length", str(len(body)))
            if content_type is not None:
                connection.putheader("Content-Type", content_type.encode())
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read()

    def resident_mib(self) -> float:
        """Resident memory of all processes of the server."""
        pages = 0
        for folder in Path("/proc").glob("[0-9]*"):
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                # After the name in parentheses: state, parent, group.
                if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == self.process.pid:
                    pages += int((folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ask(self, body: Any) -> tuple[int, Any]:
        """The same for a value, as JSON."""
        status, answer = self.post(json.dumps(body).encode())
        return status, json.loads(answer)


def python_without_package(folder: Path) -> Path:
    """A Python with every installed distribution but this package: a server with the requirements only."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "everything.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    (packages / "sitecustomize.py").write_text(_BLOCKER, encoding="utf-8")
    python = folder / "bin" / "python"
    # MLflow starts the scoring server by this name.
    script = folder / "bin" / "uvicorn"
    # Several workers import the script that started them.
    text = f"#!{python}\nfrom uvicorn.main import main\n\nif __name__ == '__main__':\n    main()\n"
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    missing = subprocess.run([python, "-c", f"import {PACKAGE}"], cwd=folder, env=environment_of(python), check=False)
    assert missing.returncode != 0, f"{PACKAGE} can be imported where it should not be"
    return python


@contextlib.contextmanager
def serving(
    model: Path | str,
    folder: Path,
    *,
    python: Path,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    env_manager: str = "local",
) -> Iterator[Server]:
    """Serve ``model``, a path or a URI, with ``python`` until the block ends; ``folder`` holds the log.

    Any ``env_manager`` but ``local`` installs the model's requirements first.
    """
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
    where = ["-m", str(model), "-h", "127.0.0.1", "-p", str(port), "--workers", str(workers)]
    command = [str(python), "-m", "mlflow", "models", "serve", *where, "--env-manager", env_manager]
    seconds = 180 if env_manager == "local" else 900
    variables = {**environment_of(python), **(environment or {})}
    with background(command, ready=f"{url}/ping", environment=variables, log=log, seconds=seconds) as process:
        yield Server(url=url, process=process, log=log)


@contextlib.contextmanager
def tracking(folder: Path) -> Iterator[str]:
    """A tracking server that proxies artifacts; yields its address. ``folder`` holds its database, files and log."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *stores, *where]
    # Eight more processes, for jobs that nobody asks for here.
    variables = {**environment_of(Path(sys.executable)), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with background(command, ready=f"{url}/health", environment=variables, log=folder / "server.log"):
        yield url


def environment_of(python: Path) -> dict[str, str]:
    """The variables of a process that is run by ``python``, without what the tests set for MLflow."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW", "_MLFLOW"))}
    return {**kept, "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])}
