"""Nothing is used before it was checked, and the bytes checked are the bytes used."""

import hashlib
import os
import shutil

import pytest

from mlflow_keras_subclass.errors import FormatError, IntegrityError, UntrustedCodeError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.manifest import Manifest, Versions, write_manifest
from mlflow_keras_subclass.trust import PICKLE_VARIABLE, TrustPolicy, VerifiedModel, verify

NAMES = ("class.cloudpickle", "config.json", "source/pkg/net.py", "state.safetensors")


@pytest.fixture
def root(tmp_path):
    writer = ArtifactWriter(tmp_path, "keras_subclass")
    for name in NAMES:
        writer.write_bytes(name, f"content of {name}".encode())
    manifest = Manifest(
        format_version=1,
        created_at="2026-11-24T08:00:00Z",
        model_class="pkg:Net",
        versions=Versions(
            python="3",
            python_magic="00",
            keras="3",
            backend="tensorflow",
            backend_version="2",
            numpy="2",
            cloudpickle="3",
            mlflow="3",
            mlflow_keras_subclass="0",
        ),
        files=writer.entries,
    )
    write_manifest(writer.directory, manifest)
    return tmp_path


def flip(path, position=3):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_untouched_artifact_reads_back(root):
    verified = verify(root, TrustPolicy())

    assert verified.names() == tuple(sorted(NAMES))
    assert verified.read_bytes("config.json") == b"content of config.json"
    with verified.open("state.safetensors") as (file, size):
        assert file.read() == b"content of state.safetensors"
        assert size == 28


@pytest.mark.parametrize("name", NAMES)
def test_changed_file_is_named(root, name):
    flip(root / "keras_subclass" / name)

    with pytest.raises(IntegrityError, match=f"changed: keras_subclass/{name}"):
        verify(root, TrustPolicy())


def test_truncated_file_is_named_with_both_sizes(root):
    (root / "keras_subclass/config.json").write_bytes(b"short")

    with pytest.raises(IntegrityError, match=r"changed: keras_subclass/config\.json has 5 bytes; expected 22"):
        verify(root, TrustPolicy())


def test_missing_file_is_named(root):
    (root / "keras_subclass/class.cloudpickle").unlink()

    with pytest.raises(IntegrityError, match=r"keras_subclass/class\.cloudpickle is missing"):
        verify(root, TrustPolicy())


def test_missing_manifest_means_the_save_never_finished(root):
    (root / "keras_subclass/manifest.json").unlink()

    with pytest.raises(IntegrityError, match=r"manifest.json is missing: the save or the download never finished"):
        verify(root, TrustPolicy())


def test_added_file_is_refused(root):
    (root / "keras_subclass/source/pkg/extra.py").write_text("print()")

    with pytest.raises(IntegrityError, match=r"keras_subclass/source/pkg/extra\.py is not in manifest\.json"):
        verify(root, TrustPolicy())


def test_added_folder_link_is_refused(root, tmp_path_factory):
    (root / "keras_subclass/more").symlink_to(tmp_path_factory.mktemp("elsewhere"))

    with pytest.raises(IntegrityError, match=r"keras_subclass/more is not in manifest\.json"):
        verify(root, TrustPolicy())


@pytest.mark.parametrize("inside", [True, False])
def test_symbolic_link_is_refused(root, inside, tmp_path_factory):
    target = root / "keras_subclass/config.json"
    other = (root / "copy.json") if inside else tmp_path_factory.mktemp("elsewhere") / "copy.json"
    shutil.move(target, other)
    target.symlink_to(other)

    with pytest.raises(IntegrityError, match=r"config\.json is a symbolic link"):
        verify(root, TrustPolicy())


def test_linked_folder_is_refused(root):
    shutil.move(root / "keras_subclass", root / "real")
    (root / "keras_subclass").symlink_to(root / "real")

    with pytest.raises(IntegrityError, match="keras_subclass is a symbolic link"):
        verify(root, TrustPolicy())


def test_fifo_is_refused_and_does_not_block(root):
    target = root / "keras_subclass/config.json"
    target.unlink()
    os.mkfifo(target)

    with pytest.raises(IntegrityError, match=r"config\.json is no regular file"):
        verify(root, TrustPolicy())


def test_file_swapped_after_the_check_is_not_read(root):
    """Small files were kept, and large ones are read from the descriptor that was hashed."""
    verified = verify(root, TrustPolicy())
    for name in NAMES:
        path = root / "keras_subclass" / name
        path.unlink()
        path.write_bytes(b"evil")

    assert verified.read_bytes("class.cloudpickle") == b"content of class.cloudpickle"
    with verified.open("state.safetensors") as (file, _):
        assert file.read() == b"content of state.safetensors"


def test_expected_manifest_digest_is_the_anchor(root):
    """Whoever rewrites the files can rewrite the manifest too, but not the digest that the caller knows."""
    digest = hashlib.sha256((root / "keras_subclass/manifest.json").read_bytes()).hexdigest()
    verify(root, TrustPolicy(manifest_sha256=digest))

    with pytest.raises(IntegrityError, match=f"expected the manifest with sha256 {'0' * 64}, got {digest}"):
        verify(root, TrustPolicy(manifest_sha256="0" * 64))


def test_unknown_file_is_a_format_error(root):
    with pytest.raises(FormatError, match=r"keras_subclass/nothing.json is not in manifest.json"):
        verify(root, TrustPolicy()).read_bytes("nothing.json")


def test_only_verify_makes_a_verified_model(root):
    manifest = verify(root, TrustPolicy()).manifest

    with pytest.raises(TypeError, match="verify"):
        VerifiedModel(object(), root, manifest, "0" * 64, TrustPolicy(), {})


def test_environment_forbids_pickles_whatever_the_caller_allows(monkeypatch):
    monkeypatch.setenv(PICKLE_VARIABLE, "false")

    with pytest.raises(UntrustedCodeError, match=rf"{PICKLE_VARIABLE}.*custom_objects="):
        TrustPolicy().check_code("cloudpickle", pickled=True)
    TrustPolicy().check_code("source", pickled=False)


def test_caller_forbids_code():
    with pytest.raises(UntrustedCodeError, match="trust policy forbids"):
        TrustPolicy(allow_code=False).check_code("source", pickled=False)
    TrustPolicy(allow_code=False).check_code("import", pickled=False)
