"""Nothing is used before it was checked, and the bytes checked are the bytes used."""

import hashlib
import os
import shutil
import sys
import tracemalloc

import pytest
from click.testing import CliRunner

from mlflow_keras_subclass.cli import cli
from mlflow_keras_subclass.errors import FormatError, IntegrityError, KerasSubclassError, UntrustedCodeError
from mlflow_keras_subclass.files import ArtifactWriter, FileEntry
from mlflow_keras_subclass.manifest import MAX_JSON_BYTES, SIGNATURE_FILE, Manifest, Versions, write_manifest
from mlflow_keras_subclass.trust import PICKLE_VARIABLE, TrustPolicy, VerifiedModel, sign, verify

NAMES = ("class.cloudpickle", "config.json", "source/pkg/net.py", "state.safetensors")


@pytest.fixture
def root(tmp_path):
    writer = ArtifactWriter(tmp_path, "keras_subclass")
    for name in NAMES:
        writer.write_bytes(name, f"content of {name}".encode())
    write(tmp_path, writer.entries)
    return tmp_path


def write(root, entries):
    manifest = Manifest(
        format_version=1,
        created_at="2026-11-24T08:00:00Z",
        model_class="pkg:Net",
        versions=Versions(
            python="3",
            python_magic="00",
            keras="3",
            keras_distribution="keras",
            backend="tensorflow",
            backend_version="2",
            numpy="2",
            cloudpickle="3",
            mlflow="3",
            mlflow_keras_subclass="0",
        ),
        files=tuple(entries),
    )
    write_manifest(root / "keras_subclass", manifest)


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


def test_arrays_code_and_what_is_huge_stay_out_of_memory(tmp_path):
    """A hundred large models can be checked by one server; what is that large and no array is refused when read."""
    (tmp_path / "keras_subclass").mkdir()
    (tmp_path / "code").mkdir()
    sizes = {
        "code/pkg.bin": 2**23,
        "keras_subclass/huge.bin": 2**26 + 1,
        "keras_subclass/small.json": 2,
        "keras_subclass/state.safetensors": 2**23,
    }
    entries = []
    for path, size in sizes.items():
        (tmp_path / path).touch()
        os.truncate(tmp_path / path, size)
        entries.append(FileEntry(path=path, size_bytes=size, sha256=hashlib.sha256(bytes(size)).hexdigest()))
    write(tmp_path, entries)

    tracemalloc.start()
    try:
        verified = verify(tmp_path, TrustPolicy())
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 2**22
    assert verified.read_bytes("small.json") == bytes(2)
    with pytest.raises(FormatError, match=r"huge\.bin has 67108865 bytes; expected at most 67108864"):
        verified.read_bytes("huge.bin")


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


@pytest.fixture(scope="module")
def before_open():
    """Calls ``action`` once, right before a file with this name is opened: an audit hook, which cannot be removed."""
    armed = {}

    def hook(event, arguments):
        if event == "open" and armed and str(arguments[0]).endswith(armed["name"]):
            action = armed["action"]
            armed.clear()
            action()

    sys.addaudithook(hook)
    return lambda name, action: armed.update(name=name, action=action)


@pytest.mark.parametrize("kind", ["file", "FIFO", "link", "linked folder"])
def test_file_swapped_between_the_look_and_the_opening_is_refused(root, before_open, kind):
    """By the same bytes, too: what was looked at is what must be open."""
    folder = root / "keras_subclass/source/pkg"

    def swap():
        if kind == "linked folder":
            shutil.copytree(folder, root / "elsewhere")
            shutil.rmtree(folder)
            folder.symlink_to(root / "elsewhere")
            return
        other = root / "other"
        if kind == "file":
            shutil.copy(folder / "net.py", other)
        elif kind == "FIFO":
            os.mkfifo(other)
        else:
            other.symlink_to(root / "keras_subclass/config.json")
        other.replace(folder / "net.py")

    before_open("net.py", swap)
    with pytest.raises(IntegrityError, match=r"source/pkg/net\.py (was replaced while it was|cannot be) opened"):
        verify(root, TrustPolicy())


def test_copy_for_a_library_that_reads_by_path_has_the_checked_bytes(root, tmp_path_factory):
    """Of a file that was changed in place in the meantime nothing is left."""
    verified, folder = verify(root, TrustPolicy()), tmp_path_factory.mktemp("copies")
    verified.copy("state.safetensors", folder / "below" / "whole")
    assert (folder / "below" / "whole").read_bytes() == b"content of state.safetensors"
    flip(root / "keras_subclass/state.safetensors")

    with pytest.raises(IntegrityError, match=r"changed: keras_subclass/state\.safetensors, while it was read"):
        verified.copy("state.safetensors", folder / "changed")
    assert not (folder / "changed").exists()


def test_expected_manifest_digest_is_the_anchor(root):
    """Whoever rewrites the files can rewrite the manifest too, but not the digest that the caller knows."""
    digest = hashlib.sha256((root / "keras_subclass/manifest.json").read_bytes()).hexdigest()
    verify(root, TrustPolicy(manifest_sha256=digest))

    with pytest.raises(
        IntegrityError,
        match=f"expected the manifest with sha256 {'0' * 64}, as the trust policy names it, got {digest}",
    ):
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


def test_never_means_neither_code_nor_imports_by_name():
    for form in ("cloudpickle", "source", "import"):
        with pytest.raises(UntrustedCodeError, match=rf"level 'never', stored as {form}.*custom_objects="):
            TrustPolicy(level="never").check_code(form, pickled=False)


def test_caller_forbids_pickles_only():
    with pytest.raises(UntrustedCodeError, match="is a pickle"):
        TrustPolicy(allow_pickle=False).check_code("cloudpickle", pickled=True)
    TrustPolicy(allow_pickle=False).check_code("source", pickled=False)


def test_policy_of_the_environment(monkeypatch, tmp_path):
    assert TrustPolicy.from_environment() == TrustPolicy()

    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_TRUST", " Known ")
    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_MANIFEST_SHA256", "AB" * 32)
    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_PUBLIC_KEY", str(tmp_path / "key.pem"))

    assert TrustPolicy.from_environment() == TrustPolicy(
        level="known", manifest_sha256="ab" * 32, public_key=str(tmp_path / "key.pem")
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"level": "nevr"}, "expected one of code, known, never, got 'nevr'"),
        ({"level": ""}, "got ''"),
        ({"level": "known"}, "'known' needs something to know the model by"),
        ({"manifest_sha256": "ABCD"}, "expected 64 hexadecimal digits, got 'ABCD'"),
        ({"manifest_sha256": ""}, "expected 64 hexadecimal digits, got ''"),
    ],
)
def test_policy_that_would_not_protect_is_refused(arguments, text):
    """A misspelt level or an empty digest must not mean that anything goes."""
    with pytest.raises(KerasSubclassError, match=text):
        TrustPolicy(**arguments)


def test_known_is_not_satisfied_by_what_the_model_says_of_itself(root):
    digest = hashlib.sha256((root / "keras_subclass/manifest.json").read_bytes()).hexdigest()

    with pytest.raises(IntegrityError, match="as the trust policy names it"):
        verify(root, TrustPolicy(level="known", manifest_sha256="0" * 64), recorded_sha256=digest)
    with pytest.raises(IntegrityError, match="as MLmodel names it"):
        verify(root, TrustPolicy(level="known", manifest_sha256=digest), recorded_sha256="0" * 64)


@pytest.mark.parametrize("added", ["code/evil.py", "code/pkg/__init__.py"])
def test_code_that_was_added_is_refused(root, added):
    (root / added).parent.mkdir(parents=True, exist_ok=True)
    (root / added).write_text("")

    with pytest.raises(IntegrityError, match=f"{added} is not in manifest"):
        verify(root, TrustPolicy())


def test_linked_code_folder_is_refused(root, tmp_path_factory):
    (root / "code").symlink_to(tmp_path_factory.mktemp("elsewhere"))

    with pytest.raises(IntegrityError, match=r"code is not in manifest\.json"):
        verify(root, TrustPolicy())


def test_caches_that_python_writes_beside_code_are_no_change(root):
    (root / "code/pkg/__pycache__").mkdir(parents=True)
    (root / "code/pkg/__pycache__/m.cpython-311.pyc").write_bytes(b"")

    verify(root, TrustPolicy())


class TestSignatures:
    """By keys made here, without a network."""

    @pytest.fixture(scope="class")
    def keys(self, tmp_path_factory):
        pytest.importorskip("model_signing.signing", reason="the extra [signing] is not installed")
        ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
        from cryptography.hazmat.primitives import serialization as form

        folder = tmp_path_factory.mktemp("keys")
        for name in ("mine", "other"):
            key = ec.generate_private_key(ec.SECP256R1())
            private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
            public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
            (folder / f"{name}.key").write_bytes(private)
            (folder / f"{name}.pub").write_bytes(public)
        return folder

    def test_signed_model_is_known(self, root, keys):
        assert sign(root, private_key=keys / "mine.key") == root / "keras_subclass.sig.json"

        verify(root, TrustPolicy(level="known", public_key=keys / "mine.pub"))
        verify(root, TrustPolicy())

    def test_other_tools_of_the_format_read_it(self, root, keys):
        from model_signing import verifying

        sign(root, private_key=keys / "mine.key")

        config = verifying.Config().use_elliptic_key_verifier(public_key=keys / "mine.pub")
        config.set_ignore_unsigned_files(True).verify(root, root / "keras_subclass.sig.json")

    def test_the_command_line_signs_and_asks_for_the_signature(self, root, keys):
        def exit_code_of(*arguments):
            return CliRunner().invoke(cli, [str(item) for item in arguments]).exit_code

        asked = ("verify", root, "--public-key", keys / "mine.pub")
        assert exit_code_of(*asked) == 1
        assert exit_code_of("sign", root, "--private-key", keys / "mine.key") == 0
        assert exit_code_of(*asked) == 0
        assert exit_code_of("verify", root, "--public-key", keys / "other.pub") == 1
        assert exit_code_of("verify", root, "--manifest-sha256", "0" * 64) == 1
        assert exit_code_of("sign", root, "--private-key", keys / "none.key") == 1

    def test_a_key_with_a_password_takes_it_from_the_environment(self, root, keys, monkeypatch):
        form = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        key = form.load_pem_private_key((keys / "mine.key").read_bytes(), password=None)
        encrypted = key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"a word")
        )
        (root.parent / "locked.key").write_bytes(encrypted)
        arguments = ["sign", str(root), "--private-key", str(root.parent / "locked.key")]

        assert CliRunner().invoke(cli, arguments).exit_code == 1
        monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_KEY_PASSWORD", "a word")
        assert CliRunner().invoke(cli, arguments).exit_code == 0
        verify(root, TrustPolicy(level="known", public_key=keys / "mine.pub"))

    def test_unsigned_model_is_refused(self, root, keys):
        with pytest.raises(IntegrityError, match=r"keras_subclass\.sig\.json is missing: the trust policy demands"):
            verify(root, TrustPolicy(public_key=keys / "mine.pub"))

    def test_signature_of_somebody_else_is_refused(self, root, keys):
        sign(root, private_key=keys / "other.key")

        with pytest.raises(IntegrityError, match=r"is not a signature of keras_subclass/manifest\.json by the owner"):
            verify(root, TrustPolicy(public_key=keys / "mine.pub"))

    @pytest.mark.parametrize("recomputed", [False, True])
    def test_files_changed_after_signing_are_refused(self, root, keys, recomputed):
        """With all digests recomputed, too: that is what a signature is for."""
        sign(root, private_key=keys / "mine.key")
        flip(root / "keras_subclass/state.safetensors")
        if recomputed:
            manifest = root / "keras_subclass/manifest.json"
            old = hashlib.sha256(b"content of state.safetensors").hexdigest()
            new = hashlib.sha256((root / "keras_subclass/state.safetensors").read_bytes()).hexdigest()
            manifest.write_text(manifest.read_text().replace(old, new))
            verify(root, TrustPolicy())

        with pytest.raises(IntegrityError, match=r"is not a signature|changed: keras_subclass/state"):
            verify(root, TrustPolicy(public_key=keys / "mine.pub"))

    def test_damaged_signature_is_refused(self, root, keys):
        file = sign(root, private_key=keys / "mine.key")
        whole = file.read_bytes()
        for data in (b"", b"{}", b"[]", whole[:-1], whole.replace(b"payload", b"pay"), b"\xff" + whole):
            file.write_bytes(data)
            with pytest.raises(IntegrityError, match="is not a signature"):
                verify(root, TrustPolicy(public_key=keys / "mine.pub"))

    def test_changed_model_is_not_signed(self, root, keys):
        flip(root / "keras_subclass/config.json")

        with pytest.raises(IntegrityError, match=r"changed: keras_subclass/config\.json"):
            sign(root, private_key=keys / "mine.key")
        assert not (root / "keras_subclass.sig.json").exists()

    def test_key_that_is_none_is_named(self, root, keys, tmp_path_factory):
        key = tmp_path_factory.mktemp("keys") / "no.key"
        key.write_text("no key")

        with pytest.raises(KerasSubclassError, match=r"no\.key cannot be used"):
            sign(root, private_key=key)
        sign(root, private_key=keys / "mine.key")
        with pytest.raises(KerasSubclassError, match=r"no\.key cannot be used"):
            verify(root, TrustPolicy(public_key=key))


def test_what_is_read_before_it_is_checked_has_a_bound(root):
    """The manifest and the signature: neither is read into memory whole to find that it is too large."""
    manifest = root / "keras_subclass/manifest.json"
    os.truncate(manifest, MAX_JSON_BYTES + 1)
    with pytest.raises(FormatError, match=r"manifest\.json has 67108865 bytes; expected at most 67108864"):
        verify(root, TrustPolicy())


def test_signature_has_a_bound(root):
    (root / SIGNATURE_FILE).write_bytes(b"")
    os.truncate(root / SIGNATURE_FILE, MAX_JSON_BYTES)
    with pytest.raises(FormatError, match="expected at most"):
        verify(root, TrustPolicy(level="known", public_key=str(root / "any.pem")))
