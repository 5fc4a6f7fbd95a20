"""Saves in forked processes that are killed at their N-th write; prints what each left behind, as JSON.

``python killed_saves.py FOLDER sample|every``. The parent imports all and runs nothing, since the threads of
TensorFlow do not survive a fork.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
from faults import Faults, numbers

import mlflow_keras_subclass as mks
from mlflow_keras_subclass import keras_api, pyfunc  # noqa: F401
from mlflow_keras_subclass.trust import TrustPolicy, verify


class Net(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)


def save(path):
    model = Net(2)
    model(np.ones((2, 3), "float32"))
    mks.save_model(model, path, prove=False)


def forked(work, timeout_s=180):
    """How ``work`` ended in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OSError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(3)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(4)
        os._exit(0)
    for _ in range(timeout_s * 20):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return (
                "killed" if os.WIFSIGNALED(status) else {0: "finished", 3: "OSError"}.get(os.WEXITSTATUS(status), "?")
            )
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def state(target):
    if not target.exists():
        return "absent"
    verify(target, TrustPolicy())
    return "whole" if (target / "MLmodel").is_file() else "half"


def count_of_writes(folder):
    def work():
        faults = Faults()
        faults.arm(folder, -1, None)
        save(folder / "m")
        (folder.parent / "count").write_text(str(faults.disarm()))

    folder.mkdir()
    assert forked(work) == "finished"
    return int((folder.parent / "count").read_text())


def killed_at(folder, number):
    def work():
        faults = Faults()
        faults.arm(folder, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        save(folder / "m")

    folder.mkdir()
    return {"number": number, "ended": forked(work), "left": [state(folder / "m")]}


def limited(folder):
    """As a full disk: a write in the middle of a file fails."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        save(folder / "m")

    folder.mkdir()
    return {"ended": forked(work), "left": [path.name for path in folder.iterdir()]}


def main():
    top = Path(sys.argv[1])
    count = count_of_writes(top / "count of writes")
    tried = [*numbers(count, every=sys.argv[2] == "every"), count + 1]
    found = [killed_at(top / str(number), number) for number in tried]
    forked(lambda: save(top / "1" / "m"))
    print(json.dumps({"killed": found, "again": state(top / "1" / "m"), "limited": limited(top / "limit")}))


if __name__ == "__main__":
    main()
