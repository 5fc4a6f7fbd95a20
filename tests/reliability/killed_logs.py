"""``log_model`` to sqlite and a folder, killed or failing at its N-th write; prints what was left, as JSON.

``python killed_logs.py FOLDER sample|every``. A write is a change of the file system or a statement that changes the
database. As in ``killed_saves``, everything runs in forks.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from faults import Faults
from killed_saves import Net, forked
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.trust import TrustPolicy, verify

CHANGES = re.compile(r"\s*(INSERT|UPDATE|DELETE)", re.IGNORECASE)
DATABASE = "database"
# As MLflow 3.17.2 stores them.
STATUS = {1: "PENDING", 2: "READY", 3: "FAILED"}
UNPROVEN = {"name": "net", "prove": False, "pip_requirements": ["keras"]}


def armed_faults():
    """Faults that see the database, too."""
    faults = Faults()

    def before(_connection, _cursor, statement, *_):
        if CHANGES.match(statement):
            faults.changed(DATABASE)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "commit", lambda _: faults.changed(DATABASE))
    return faults


def prepare(folder, template):
    """A place of its own for everything that is written, with an experiment; returns its id."""
    folder.mkdir()
    (folder / "tmp").mkdir()
    tempfile.tempdir = str(folder / "tmp")
    if template is not None:
        shutil.copy(template / "mlflow.db", folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    return mlflow.create_experiment("logs", artifact_location=str(folder / "artifacts"))


def built():
    model = Net(2)
    model(np.ones((2, 3), "float32"))
    return model


def state(folder):
    """The status of each logged model, and whether what it points to is whole."""
    # Not by MLflow: its store takes a second to open.
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute("SELECT status, artifact_location FROM logged_models").fetchall()
    return [[STATUS[status], is_whole(Path(location))] for status, location in rows]


def is_whole(model):
    try:
        verify(model, TrustPolicy())
    except mks.KerasSubclassError:
        return False
    return (model / "MLmodel").is_file()


def reported(work, folder):
    """What ``work`` returned in a fork, or ``None``; and how the fork ended."""

    def write():
        found = work()
        (folder / "found.json").write_text(json.dumps(found))

    ended = forked(write, timeout_s=4 * 3600)
    file = folder / "found.json"
    return (json.loads(file.read_text()) if file.exists() else None), ended


def logged(experiment, model, faults, folder, number, action):
    """One ``log_model`` with a fault; returns the writes that it made."""
    with mlflow.start_run(experiment_id=experiment):
        faults.arm(folder, number, action)
        try:
            mks.log_model(model, **UNPROVEN)
        finally:
            faults.disarm()
    return faults.seen


def writes_of_one(folder, template):
    def work():
        return logged(prepare(folder / "one", template), built(), armed_faults(), folder, -1, None)

    folder.mkdir()
    seen, ended = reported(work, folder)
    assert ended == "finished", ended
    return seen


def killed_at(folder, template, number):
    def work():
        experiment, faults, model = prepare(folder / "one", template), armed_faults(), built()
        logged(experiment, model, faults, folder, number, lambda: os.kill(os.getpid(), signal.SIGKILL))

    folder.mkdir()
    ended, left = forked(work), state(folder / "one")
    shutil.rmtree(folder)
    return {"number": number, "ended": ended, "models": left}


def failing_at_each(top, template, *, every):
    """In one process: an error of the disk at each write."""

    def fail():
        raise OSError(errno.EIO, "Input/output error")

    def work():
        faults, model, log, found = armed_faults(), built(), io.StringIO(), []
        logging.getLogger("mlflow_keras_subclass").addHandler(logging.StreamHandler(log))
        # The second, since some is written once in a process.
        for name in ("first", "second"):
            seen = logged(prepare(top / name, template), model, faults, top / name, -1, None)
        for number in tried(seen, every=every):
            folder, error = top / str(number), None
            experiment = prepare(folder, template)
            log.seek(0)
            log.truncate()
            try:
                logged(experiment, model, faults, folder, number, fail)
            except (OSError, MlflowException) as raised:
                error = f"{type(raised).__name__}: {raised}"
            copy = re.search(r"It is complete in (\S+);", log.getvalue())
            whole = is_whole(Path(copy[1])) if copy else None
            found.append({"number": number, "error": error, "models": state(folder), "copy": whole})
            shutil.rmtree(folder)
        return found

    top.mkdir()
    found, ended = reported(work, top)
    assert ended == "finished", ended
    return found


def tried(seen, *, every):
    """The writes to try: all from the first to the database on (before, there is nothing to be marked), or some."""
    count, first = len(seen), seen.index(DATABASE) + 1
    some = {2, first // 2, first, (first + count) // 2, count - (count - first) // 4, count}
    return sorted({*some, *(range(first, count + 1) if every else ()), count + 1})


def main():
    top, every = Path(sys.argv[1]), sys.argv[2] == "every"
    template = top / "template"
    assert forked(lambda: prepare(template, None)) == "finished"
    # The name is free again for the experiments of the copies.
    assert forked(lambda: rename(template)) == "finished"
    seen = writes_of_one(top / "count", template)
    killed = [killed_at(top / str(number), template, number) for number in tried(seen, every=every)]
    failing = failing_at_each(top / "failing", template, every=every)
    print(json.dumps({"writes": len(seen), "killed": killed, "failing": failing}))


def rename(template):
    mlflow.set_tracking_uri(f"sqlite:///{template}/mlflow.db")
    mlflow.MlflowClient().rename_experiment(mlflow.get_experiment_by_name("logs").experiment_id, "first")


if __name__ == "__main__":
    main()
