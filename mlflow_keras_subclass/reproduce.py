"""Puts a model's source back: the recorded commit, the patch applied, untracked source files in their places.

Nothing of the repository or the model is run, and nothing is left behind on failure. Imports trust, the parts and
the git runner; must not import Keras.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_keras_subclass.artifacts import provenance
from mlflow_keras_subclass.artifacts.provenance import GitRecord, SourceClaim
from mlflow_keras_subclass.downloads import downloaded
from mlflow_keras_subclass.errors import ProvenanceError
from mlflow_keras_subclass.manifest import SOURCE_DIR
from mlflow_keras_subclass.repository import GitFailed, Repository, git
from mlflow_keras_subclass.trust import TrustPolicy, VerifiedModel, verify

__all__ = ["ReproducedFile", "Reproduction", "reproduce"]

_REMOTE = re.compile(r"(https?|ssh|git)://[^-].*|[^-/:][^/:]*:.+", re.DOTALL)
_FROM_RECORD = {"GIT_ALLOW_PROTOCOL": "https:http:ssh:git", "GIT_NO_LAZY_FETCH": "0"}
_FROM_CALLER = {"GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file", "GIT_NO_LAZY_FETCH": "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproducedFile:
    """A source file of the class: ``exact`` if it holds the very bytes that made the class, else why it does not."""

    path: str
    status: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What ``reproduce`` made.

    Attributes:
        path: The working tree.
        commit: The commit that is checked out, HEAD detached.
        patched: Whether the patch of what was not committed was applied.
        files: The class's source files.
        notes: What could not be put back, one sentence each.
    """

    path: Path
    commit: str
    patched: bool
    files: tuple[ReproducedFile, ...]
    notes: tuple[str, ...]


def reproduce(
    model_uri: str | Path,
    dest: str | Path,
    *,
    repository: str | Path | None = None,
    trust_policy: TrustPolicy | None = None,
    timeout_s: float = 600.0,
) -> Reproduction:
    """Make ``dest`` a working tree as it was when the model was logged, as far as that was recorded.

    Args:
        model_uri: A path or any URI that MLflow can download from.
        dest: A directory that does not exist or is empty.
        repository: A local clone or a URL to take the commit from; the recorded remote if ``None``.
        trust_policy: What the model must show; the policy of the environment if ``None``.
        timeout_s: Seconds after which git is ended.

    Raises:
        ProvenanceError: ``dest`` is occupied, no commit was recorded, or it cannot be had or changed as recorded.
        IntegrityError: A file of the model was changed since it was logged.
    """
    target = Path(dest).absolute()
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ProvenanceError(f"{target} is not empty: expected a directory that is empty or does not exist yet.")
    with downloaded(model_uri) as root:  # Files stay open, and can be read afterwards.
        verified = verify(root, trust_policy or TrustPolicy.from_environment())
    record = provenance.read(verified)
    if record.commit is None:
        raise ProvenanceError(
            f"{model_uri}: no commit was recorded when the model was logged (git: {record.status}). The source files "
            f"of the class are in keras_subclass/{SOURCE_DIR}/ of the model."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".mlflow-keras-subclass-", dir=target.parent))
    try:
        tree = _Tree(verified, record, scratch / "tree", time.monotonic() + timeout_s)
        tree.make(repository)
        tree.move_to(target)
        return tree.describe()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Tree:
    """The working tree being made, in steps."""

    def __init__(self, verified: VerifiedModel, record: GitRecord, path: Path, deadline: float) -> None:
        self._verified = verified
        self._record = record
        self._path = path
        self._deadline = deadline
        self._stored = _stored_by_blob(verified)
        self._environment: Mapping[str, str] = {}

    def make(self, repository: str | Path | None) -> None:
        try:
            self._clone(repository)
            self._check_out()
            self._apply_patch()
        except GitFailed as error:
            raise ProvenanceError(
                f"git could not put commit {self._record.commit} back: {error.args[0]}. Pass repository= with a clone "
                "that has this commit."
            ) from None
        for claim in self._record.sources:
            if claim.repository == 0 and claim.status in ("untracked", "modified"):
                self._restore(claim)

    def move_to(self, target: Path) -> None:
        if target.exists():
            target.rmdir()
        self._path.rename(target)
        self._path = target

    def _clone(self, repository: str | Path | None) -> None:
        origin = str(repository) if repository is not None else self._record.remote_url
        if origin is None:
            raise ProvenanceError(
                "No remote was recorded when the model was logged: pass repository= with a clone that has commit "
                f"{self._record.commit}."
            )
        if repository is None and not _REMOTE.fullmatch(origin):
            raise ProvenanceError(
                f"The recorded remote {origin!r} is no https, ssh or git URL. Pass repository= to name one yourself."
            )
        if repository is not None and Path(origin).exists():
            origin = str(Path(origin).absolute())
        self._environment = _FROM_RECORD if repository is None else _FROM_CALLER
        git(
            self._path.parent,
            self._deadline,
            "clone",
            *("--quiet", "--no-checkout", "--template=", "--no-recurse-submodules"),
            *("--", origin, str(self._path)),
            config=(),
            environment=self._environment,
        )

    def _check_out(self) -> None:
        commit = str(self._record.commit)
        tree = Repository(self._path, self._deadline)
        if not tree.has_commit(commit):
            tree.run("fetch", "--quiet", "origin", commit, config=(), environment=self._environment)
        tree.run("checkout", "--quiet", "--detach", commit)

    def _apply_patch(self) -> None:
        if self._record.patch_file is None:
            return
        # git refuses by itself to write outside the working tree or through a link.
        file = self._path.parent / "patch"
        file.write_bytes(self._verified.read_bytes(self._record.patch_file))
        Repository(self._path, self._deadline).run("apply", "--whitespace=nowarn", str(file))

    def _restore(self, claim: SourceClaim) -> None:
        """Write the stored file where the patch did not bring it about."""
        data = self._stored.get(claim.blob or "")
        target = self._path / claim.path
        if data is None or (target.is_file() and target.read_bytes() == data):
            return
        if ".git" in Path(claim.path).parts or not target.resolve().is_relative_to(self._path.resolve()):
            raise ProvenanceError(f"{claim.path} would be written outside the working tree. The model is not sound.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def describe(self) -> Reproduction:
        record = self._record
        notes = [
            f"{item.path}: lines {item.first_line} to {item.last_line} of the patch were left out: {item.reason}."
            for item in record.omissions
        ]
        if record.patch_omitted is not None:
            notes.append(f"The patch was left out: {record.patch_omitted}.")
        if (self._path / ".gitmodules").exists():
            notes.append("Submodules were not checked out.")
        attributes = self._path / ".gitattributes"
        if attributes.is_file() and b"filter=" in attributes.read_bytes():
            notes.append("Files that a filter changes on checkout, as those of git LFS, are as git stores them.")
        files = tuple(ReproducedFile(path=c.path, status=c.status, result=self._result(c)) for c in record.sources)
        return Reproduction(
            path=self._path,
            commit=str(record.commit),
            patched=record.patch_file is not None,
            files=files,
            notes=tuple(notes),
        )

    def _result(self, claim: SourceClaim) -> str:
        if claim.repository != 0:
            return "not in this repository"
        target = self._path / claim.path
        if not target.is_file():
            return "missing"
        if claim.blob in provenance.blob_ids(target.read_bytes()):
            return "exact"
        return "equal but for git's filters" if claim.status == "identical-after-filters" else "different"


def _stored_by_blob(verified: VerifiedModel) -> Mapping[str, bytes]:
    """The stored source files by the object IDs that git would give them."""
    stored = {}
    for name in verified.names():
        if name.startswith(f"{SOURCE_DIR}/"):
            data = verified.read_bytes(name)
            stored.update(dict.fromkeys(provenance.blob_ids(data), data))
    return stored
