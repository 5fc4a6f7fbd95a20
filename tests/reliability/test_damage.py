"""Every way in which the files of an artifact can be damaged ends in an error that names the file; nothing runs.

Below Keras: what is tried here must be refused before anything is imported, unpickled or parsed without bounds. The
numbers are those of the list of corruptions in docs/reliability.md, which says where the other ones are.
"""

import json
import os
import pickle
import random
import shutil
import socket
import stat
import zipfile
from pathlib import Path

import pytest
from fuzzing import artifact, mutated, read_all

from mlflow_keras_subclass.errors import FormatError, IntegrityError, KerasSubclassError
from mlflow_keras_subclass.manifest import MAX_JSON_BYTES
from mlflow_keras_subclass.trust import TrustPolicy, verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return artifact(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def manifest_text(change):
    def damage(root):
        path = root / "keras_subclass/manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return damage


def manifest_value(change):
    def damage(root):
        path = root / "keras_subclass/manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def first_path(text):
    return manifest_value(lambda content: content["files"][0].update(path=text))


def in_place(change, name="config.json"):
    def damage(root):
        path = root / "keras_subclass" / name
        change(path)

    return damage


def replace_by(make):
    def change(path):
        path.unlink()
        make(path)

    return in_place(change)


def bound_socket(path):
    # The name of a socket has few bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


def move_away_and_link(path):
    shutil.move(path, path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def link_inside(path):
    path.rename(path.parents[1] / "copy.json")
    path.symlink_to("../copy.json")


class Evil:
    def __reduce__(self):
        return open, (os.environ["MKS_CANARY"], "w")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)


def deep(root):
    folder = root / "keras_subclass"
    for _ in range(200):
        folder = folder / "d"
    folder.mkdir(parents=True)
    (folder / "f").touch()


def many(root):
    for number in range(100_000):
        os.close(os.open(root / "keras_subclass" / f"{number}", os.O_CREAT | os.O_WRONLY))


def zipped(root):
    """An archive where the folder was, which unpacks to a thousand times its size."""
    shutil.rmtree(root / "keras_subclass")
    with zipfile.ZipFile(root / "keras_subclass", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", bytes(2**24))


def of_version(number):
    return manifest_value(lambda content: content.update(format_version=number))


# As docs/reliability.md says.
WRONG_TYPES = 148
DAMAGES = {
    "01 manifest missing": (in_place(lambda p: p.unlink(), "manifest.json"), IntegrityError, r"manifest\.json is mis"),
    "02 manifest empty": (manifest_text(lambda _: b""), FormatError, "not valid JSON"),
    "03 manifest not JSON": (manifest_text(lambda _: b"<html>"), FormatError, "not valid JSON"),
    "04 manifest not UTF-8": (manifest_text(lambda d: d.replace(b"m:N", b"m:\xff")), FormatError, "not valid JSON"),
    "05 key twice": (manifest_text(lambda d: b'{"files": [], ' + d[1:]), FormatError, "appears twice"),
    "06 NaN": (
        manifest_text(lambda d: d.replace(b'"format_version": 1', b'"format_version": NaN')),
        FormatError,
        "NaN",
    ),
    "06 1e999": (
        manifest_text(lambda d: d.replace(b'"format_version": 1', b'"format_version": 1e999')),
        FormatError,
        "out of range",
    ),
    "07 nested": (manifest_text(lambda _: b"[" * 100_000), FormatError, "manifest"),
    "08 too large": (in_place(sparse, "manifest.json"), FormatError, "expected at most"),
    "09 newer version": (of_version(99), FormatError, "Install a newer release"),
    "09 version as text": (of_version("1"), FormatError, "whole number"),
    "13 digest": (manifest_value(lambda c: c["files"][0].update(sha256="0" * 64)), IntegrityError, "changed: keras_s"),
    "14 digest of md5": (
        manifest_value(lambda c: c["files"][0].update(sha256="0" * 32)),
        FormatError,
        "64 hexadecimal",
    ),
    "14 other digest": (manifest_value(lambda c: c["files"][0].update(md5="0" * 32)), FormatError, "unknown md5"),
    "15 listed and missing": (in_place(lambda p: p.unlink()), IntegrityError, r"config\.json is missing"),
    "16 unlisted": (in_place(lambda p: p.touch(), "extra.py"), IntegrityError, r"extra\.py is not in manifest"),
    "17 listed twice": (manifest_value(lambda c: c["files"].append(c["files"][0])), FormatError, "listed 2 times"),
    "17 case twins": (
        manifest_value(
            lambda c: c["files"].append(
                {**c["files"][0], "path": c["files"][0]["path"].upper().replace("KERAS_SUBCLASS", "keras_subclass")}
            )
        ),
        FormatError,
        "listed 2 times",
    ),
    "18 dots": (first_path("keras_subclass/../../etc/passwd"), FormatError, "not a plain relative path"),
    "19 absolute": (first_path("/etc/passwd"), FormatError, "is not below"),
    "20 backslash": (first_path("keras_subclass/..\\x"), FormatError, "not a plain relative path"),
    "20 drive": (first_path("C:/x"), FormatError, "is not below"),
    "20 stream": (first_path("keras_subclass/x:y"), FormatError, "not a plain relative path"),
    "21 NUL": (first_path("keras_subclass/x\0y"), FormatError, "not a plain relative path"),
    "21 newline": (first_path("keras_subclass/x\ny"), FormatError, "not a plain relative path"),
    "21 right to left": (first_path("keras_subclass/x\u202ey"), FormatError, "not a plain relative path"),
    "22 link to inside": (in_place(link_inside), IntegrityError, "symbolic link"),
    "23 link to outside": (in_place(move_away_and_link), IntegrityError, "symbolic link"),
    "24 link to itself": (replace_by(lambda p: p.symlink_to(p)), IntegrityError, "symbolic link"),
    "24 link as manifest": (in_place(move_away_and_link, "manifest.json"), IntegrityError, "symbolic link"),
    "26 FIFO": (replace_by(os.mkfifo), IntegrityError, "no regular file"),
    "26 FIFO as manifest": (
        in_place(lambda p: (p.unlink(), os.mkfifo(p)), "manifest.json"),
        IntegrityError,
        "no regular file",
    ),
    "26 socket": (replace_by(bound_socket), IntegrityError, "no regular file"),
    "26 folder": (replace_by(lambda p: p.mkdir()), IntegrityError, "no regular file"),
    "28 empty": (in_place(lambda p: p.write_bytes(b""), "state.safetensors"), IntegrityError, "has 0 bytes"),
    "43 configuration edited": (in_place(lambda p: p.write_text("{}")), IntegrityError, "config"),
    "52 pickle replaced": (
        in_place(lambda p: p.write_bytes(pickle.dumps(Evil())), "class.cloudpickle"),
        IntegrityError,
        "class.cloudpickle",
    ),
    "52 pickle beside": (
        in_place(lambda p: p.write_bytes(pickle.dumps(Evil())), "class.pkl.gz"),
        IntegrityError,
        "not in manifest",
    ),
    "58 deep tree": (deep, IntegrityError, "not in manifest"),
    "58 a hundred thousand files": (many, IntegrityError, "not in manifest"),
    "58 archive": (zipped, IntegrityError, r"manifest\.json is missing"),
    "58 path of 4 KB": (
        manifest_value(
            lambda c: c["files"].append({**c["files"][-1], "path": "keras_subclass/t" + "/x" * 2040}),
        ),
        IntegrityError,
        "/x is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name(root, tmp_path, monkeypatch, name):
    monkeypatch.setenv("MKS_CANARY", str(tmp_path / "canary"))
    damage, kind, text = DAMAGES[name]
    damage(root)

    with pytest.raises(kind, match=text):
        verify(root, TrustPolicy())
    assert not (tmp_path / "canary").exists()


def test_26_device_is_refused_and_not_read(root):
    """Who made one of ``/dev/zero`` would be read for ever."""
    path = root / "keras_subclass/config.json"
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")

    with pytest.raises(IntegrityError, match="no regular file"):
        verify(root, TrustPolicy())


def test_the_canary_would_sing(tmp_path, monkeypatch):
    monkeypatch.setenv("MKS_CANARY", str(tmp_path / "canary"))

    pickle.loads(pickle.dumps(Evil())).close()

    assert (tmp_path / "canary").exists()


def test_11_unknown_key_of_the_same_version_is_no_damage(root):
    manifest_value(lambda content: content.update(later=1))(root)

    verify(root, TrustPolicy())


def test_12_every_key_of_the_wrong_type(root):
    """For every key of the manifest, of its versions and of an entry, values of every other JSON type."""
    path = root / "keras_subclass/manifest.json"
    content = json.loads(path.read_text())
    tried = 0
    for holder in (content, content["versions"], content["files"][0]):
        for key, right in list(holder.items()):
            for value in (None, True, 1.5, -1, "x", [], {}, [1], {"a": 1}):
                if isinstance(right, str) and isinstance(value, str):
                    continue
                holder[key] = value
                path.write_text(json.dumps(content))
                with pytest.raises(KerasSubclassError):
                    verify(root, TrustPolicy())
                tried += 1
            holder[key] = right
    assert tried == WRONG_TYPES


def test_25_hard_link_changed_after_the_check(root):
    """The bytes kept are those that were hashed."""
    verified = verify(root, TrustPolicy())
    before = verified.read_bytes("config.json")
    with (root / "keras_subclass/config.json").open("r+b") as file:
        file.write(b"evil")

    assert verified.read_bytes("config.json") == before


def test_27_truncated_weights(root):
    path = root / "keras_subclass/state.safetensors"
    data = path.read_bytes()
    for size in {*range(0, len(data), 64), *range(len(data) - 64, len(data))}:
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError, match="changed: keras_subclass/state"):
            verify(root, TrustPolicy())


def test_29_single_bits(root):
    """500 seeded positions over all files, the manifest included."""
    chosen = random.Random(29)
    files = sorted(path for path in (root / "keras_subclass").rglob("*") if path.is_file())
    before = read_all(root)
    for _ in range(500):
        path = chosen.choice(files)
        data = bytearray(path.read_bytes())
        whole = bytes(data)
        position = chosen.randrange(len(data))
        data[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(bytes(data))
        if path.name == "manifest.json":
            # Digest and size of every file are in it; what else it says changes no bytes that are used.
            mutated_is_safe(root, before)
        else:
            with pytest.raises(IntegrityError, match=f"changed: .*{path.name}"):
                verify(root, TrustPolicy())
        path.write_bytes(whole)


def mutated_is_safe(root, before):
    try:
        found = read_all(root)
    except KerasSubclassError:
        return
    assert found == before


def test_fuzzing_slice(whole, tmp_path):
    """2,000 seeded mutations over every reader; ``make test-fuzz`` makes a hundred thousand."""
    counts = mutated(whole, seed=7, rounds=2000)

    assert counts["mutations"] == 2000
    assert counts["refused"] > 500
    assert counts["silent"] == 0
