"""Signatures of the manifest by the OpenSSF library ``model-signing``, the extra ``[signing]``.

What is signed is ``keras_subclass/manifest.json``, which holds the digest of every file of ours and of the code beside
it: MLflow edits ``MLmodel`` after a save, and the registry adds files of its own. Any tool of the OpenSSF format reads
the signature. Imports errors and the file names.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from mlflow_keras_subclass.errors import IntegrityError, KerasSubclassError
from mlflow_keras_subclass.manifest import DATA_DIR, MANIFEST_FILE, SIGNATURE_FILE

__all__ = ["check_signature", "make_signature"]


def make_signature(manifest: bytes, *, private_key: Path, password: str | None = None) -> bytes:
    """A signature of the bytes of a manifest by an elliptic-curve key in a PEM file.

    Raises:
        KerasSubclassError: The key cannot be read, or the extra is not installed.
    """
    signing = _library("signing")
    with tempfile.TemporaryDirectory(prefix="mlflow-keras-subclass-") as folder:
        model, signature = _laid_out(Path(folder), manifest)
        try:
            config = signing.Config().use_elliptic_key_signer(
                private_key=private_key, password=None if password is None else password.encode()
            )
        except (OSError, ValueError, TypeError) as error:
            raise KerasSubclassError(f"private_key: {private_key} cannot be used: {error}.") from None
        config.sign(model, signature)
        return signature.read_bytes()


def check_signature(manifest: bytes, signature: bytes, *, public_key: Path) -> None:
    """Raise unless ``signature`` is one of these very bytes by the owner of ``public_key``.

    Raises:
        IntegrityError: It is not.
        KerasSubclassError: The key cannot be read, or the extra is not installed.
    """
    verifying = _library("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise KerasSubclassError(f"public_key: {public_key} cannot be used: {error}.") from None
    with tempfile.TemporaryDirectory(prefix="mlflow-keras-subclass-") as folder:
        model, file = _laid_out(Path(folder), manifest)
        file.write_bytes(signature)
        try:
            config.verify(model, file)
        except Exception as error:  # The library raises what its parsers raise; whatever it is, nothing was verified.
            raise IntegrityError(
                f"{SIGNATURE_FILE} is not a signature of {DATA_DIR}/{MANIFEST_FILE} by the owner of {public_key}: "
                f"{type(error).__name__} {error}. Download the model again, or ask who signed it."
            ) from None


def _laid_out(folder: Path, manifest: bytes) -> tuple[Path, Path]:
    """The bytes in memory as a model directory: what is checked is what is used, not what lies on the disk by now."""
    model = folder / "model"
    (model / DATA_DIR).mkdir(parents=True)
    (model / DATA_DIR / MANIFEST_FILE).write_bytes(manifest)
    return model, folder / SIGNATURE_FILE


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise KerasSubclassError(
            f"Signatures need the extra: pip install 'mlflow-keras-subclass[signing]' ({error})."
        ) from None
