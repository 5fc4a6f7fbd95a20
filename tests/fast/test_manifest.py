"""The manifest: its bytes, the law that it reads back equal, and everything that it refuses."""

import json

import pytest

from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import FileEntry
from mlflow_keras_subclass.manifest import FORMAT_VERSION, Manifest, Versions, parse_json, parse_manifest

VERSIONS = {
    "python": "3.11.7",
    "python_magic": "a70d0d0a",
    "keras": "3.15.1",
    "keras_distribution": "keras",
    "backend": "tensorflow",
    "backend_version": "2.21.0",
    "numpy": "2.4.6",
    "cloudpickle": "3.1.2",
    "mlflow": "3.17.2",
    "mlflow_keras_subclass": "0.1.0",
}
FILE = {"path": "keras_subclass/config.json", "size_bytes": 7, "sha256": "ab" * 32}


def document(**changes):
    value = {
        "format_version": 1,
        "created_at": "2026-11-24T08:00:00Z",
        "model_class": "pkg.net:Net",
        "versions": VERSIONS,
        "files": [FILE],
    }
    return json.dumps({**value, **changes}).encode()


def test_bytes_of_the_manifest():
    """The file is indented JSON with sorted keys and a final newline: a digest of it means something."""
    manifest = Manifest(
        format_version=1,
        created_at="2026-11-24T08:00:00Z",
        model_class="pkg.net:Net",
        versions=Versions(**VERSIONS),
        files=(FileEntry(**FILE),),
    )

    text = manifest.to_bytes().decode()

    assert text.startswith(
        '{\n  "created_at": "2026-11-24T08:00:00Z",\n  "files": [\n    {\n      "path": "keras_subclass'
    )
    assert text.endswith("}\n")
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_unknown_keys_of_a_later_minor_release_are_accepted():
    assert parse_manifest(document(added_later={"x": 1})).model_class == "pkg.net:Net"


def test_newer_format_says_what_to_install():
    with pytest.raises(
        FormatError, match=f"format_version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*newer release"
    ):
        parse_manifest(document(format_version=FORMAT_VERSION + 1))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "manifest.json is not valid JSON"),
        (b"\xff\xfe", "manifest.json is not valid JSON.*utf-8"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "expected an object, got list"),
        (b"{}", "missing created_at, files, format_version"),
    ],
)
def test_damaged_json_is_refused_by_name(data, text):
    with pytest.raises(FormatError, match=text):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": "1"}, "whole number from 1, got '1'"),
        ({"format_version": True}, "got True"),
        ({"format_version": 0}, "got 0"),
        ({"created_at": 5}, "created_at: expected a string, got 5"),
        ({"versions": []}, "versions: expected an object"),
        ({"versions": {**VERSIONS, "keras": 3}}, "versions.keras: expected a string, got 3"),
        ({"files": {}}, "files must be a list"),
        ({"files": [{**FILE, "md5": "x"}]}, "unknown md5"),
        ({"files": [{**FILE, "size_bytes": -1}]}, "size_bytes must be a whole number from 0, got -1"),
        ({"files": [{**FILE, "sha256": "abc"}]}, "64 hexadecimal digits, got 'abc'"),
        ({"files": [FILE, {**FILE, "path": "keras_subclass/Config.JSON"}]}, "listed 2 times"),
    ],
)
def test_wrong_content_is_refused_by_name(changes, text):
    with pytest.raises(FormatError, match=text):
        parse_manifest(document(**changes))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "keras_subclass/../../x",
        "keras_subclass//x",
        "keras_subclass/./x",
        "C:\\x",
        "keras_subclass/a\\b",
        "keras_subclass/c:x",
        "keras_subclass/a\nb",
        "keras_subclass/a\u202eb",
        "keras_subclass",
        "MLmodel",
    ],
)
def test_paths_that_leave_our_folders_are_refused(path):
    with pytest.raises(FormatError, match=r"manifest.json: .*(not below|not a plain)"):
        parse_manifest(document(files=[{**FILE, "path": path}]))


def test_json_over_the_cap_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr("mlflow_keras_subclass.manifest.MAX_JSON_BYTES", 10)

    with pytest.raises(FormatError, match=r"config\.json has 12 bytes.*at most 10"):
        parse_json(b'{"a": "bcd"}', "config.json")
