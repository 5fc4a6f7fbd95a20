"""What an artifact holds is shown without running any of it."""

import json
import pickle
import subprocess
import sys

import pytest

from mlflow_keras_subclass.artifacts import class_definition, provenance
from mlflow_keras_subclass.errors import FormatError, IntegrityError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.inspection import inspect_model
from mlflow_keras_subclass.manifest import Manifest, Versions, write_manifest
from mlflow_keras_subclass.pickles import scan

PROJECT = """
import decimal
from numpy.linalg import norm
SCALE = 2.5

class Net:
    def call(self, x):
        import sched
        return norm(x) * SCALE * decimal.Decimal(1)

calls = lambda x: Net().call(x)
"""


class Evil:
    """Runs a function of any module when it is unpickled."""

    def __init__(self, function, *args):
        self.made_of = (function, args)

    def __reduce__(self):
        return self.made_of


def write_model(root, definitions, objects=None):
    writer = ArtifactWriter(root, "keras_subclass")
    surveyed = class_definition.survey(
        definitions, objects=objects or {}, registrations={}, serialization_format="cloudpickle"
    )
    written = class_definition.write(writer, surveyed)
    writer.write_json("config.json", {"definitions": written.record.to_json()})
    writer.write_json("structure.json", {"layers": {}})
    provenance.write(writer, written.source_files, fallback=root, provenance="off")
    keys = ("python", "python_magic", "keras", "keras_distribution", "backend", "backend_version")
    keys += ("numpy", "cloudpickle", "mlflow")
    versions = Versions(**dict.fromkeys(keys, "1"), mlflow_keras_subclass="0")
    manifest = Manifest(
        format_version=1, created_at="2026-11-24T08:00:00Z", model_class="m:N", versions=versions, files=writer.entries
    )
    return write_manifest(writer.directory, manifest)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project/inspected_net.py").write_text(PROJECT, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "project")
    module = __import__("inspected_net")
    yield module
    del sys.modules["inspected_net"]


def test_everything_is_shown(tmp_path, project):
    root = tmp_path / "model"
    digest = write_model(root, {"inspected_net:Net": project.Net}, {"o": project.calls})
    (root / "requirements.txt").write_text("numpy==1\nkeras==3\n")
    (root / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: somebody.elses\n")

    found = inspect_model(root)

    assert found.manifest_sha256 == digest
    assert found.requirements == ("numpy==1", "keras==3")
    assert found.loader_module == "somebody.elses"
    assert {source.path: source.text for source in found.sources} == {"inspected_net.py": PROJECT}
    classes, objects = found.pickles
    assert classes.file == "class.cloudpickle"
    assert classes.imports == ("decimal",)
    assert "runtime.make_code" in classes.called
    assert all("inspected_net" in file for file in classes.code_files)
    assert classes.code_files
    assert objects.definitions == ("inspected_net",)
    assert json.loads(json.dumps(found.to_json()))["git"]["status"] == "off"
    assert found.files == found.manifest.files


def test_inspecting_imports_no_keras_and_none_of_the_users_modules(tmp_path, project):
    write_model(tmp_path / "model", {"inspected_net:Net": project.Net})
    code = (
        "import sys, pathlib\n"
        "from mlflow_keras_subclass.inspection import inspect_model\n"
        "inspect_model(pathlib.Path(sys.argv[1]))\n"
        "print(sorted({'keras', 'tensorflow', 'inspected_net', 'sched'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True, timeout=120
    )

    assert done.stdout.strip() == "[]"


def test_changed_file_is_refused(tmp_path, project):
    write_model(tmp_path / "model", {"inspected_net:Net": project.Net})
    (tmp_path / "model/keras_subclass/structure.json").write_text("{}")

    with pytest.raises(IntegrityError, match=r"structure\.json"):
        inspect_model(tmp_path / "model")


@pytest.mark.parametrize("protocol", range(6))
def test_call_in_a_pickle_is_named_and_does_not_happen(tmp_path, protocol):
    canary = tmp_path / "canary"
    data = pickle.dumps([Evil(open, str(canary), "w"), b"x" * 2**20], protocol=protocol)

    found = scan(data, "class.cloudpickle")

    assert not canary.exists()
    assert {f"{open.__module__}.open"} <= set(found.called)
    if protocol >= 3:
        assert found.large_blobs == (2**20,)
    pickle.loads(data)[0].close()
    assert canary.exists()


def test_imports_by_name_are_seen():
    data = pickle.dumps(Evil(__import__, "antigravity"), protocol=4)

    assert scan(data, "f").imports == ("antigravity",)


@pytest.mark.parametrize(
    "opcodes", [b"(cos\nsystem\nS'true'\no.", b"(S'true'\nios\nsystem\n.", b"cos\nsystem\n(S'true'\ntR."]
)
def test_old_forms_of_a_call_are_seen(opcodes):
    assert scan(opcodes, "f").called == ("os.system",)


def test_name_that_is_computed_is_not_hidden():
    data = b"\x80\x04cbuiltins\nstr\n(\x8c\x02ostR\x8c\x06system\x93(\x8c\x04truetR."

    assert "<computed>.system" in scan(data, "f").called


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04", b"R.", b"\x80\x04h\x05.", b"t.", b"(o."])
def test_what_is_no_pickle_is_a_format_error(data):
    with pytest.raises(FormatError, match=r"class\.cloudpickle: no pickle can be read at byte"):
        scan(data, "class.cloudpickle")
