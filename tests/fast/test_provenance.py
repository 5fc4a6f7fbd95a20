"""What git says of the class's source, in every state a repository can be in; logging never fails because of it."""

import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from repositories import git

from mlflow_keras_subclass.artifacts import provenance
from mlflow_keras_subclass.artifacts.provenance import GitRecord, OtherRepository, SourceClaim
from mlflow_keras_subclass.credentials import lines_with_secrets
from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.patches import Omission, cleaned

pytestmark = pytest.mark.usefixtures("neutral_git")

SOURCE = "class Net:\n    pass\n"


@pytest.fixture
def repository(tmp_path):
    top = tmp_path / "repo"
    (top / "pkg").mkdir(parents=True)
    git(top, "init", "-q")
    (top / "pkg/net.py").write_text(SOURCE)
    (top / "other.py").write_text("x = 1\n")
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "first")
    return top


def learn(tmp_path, *files, fallback=None, detail="full"):
    folder = tmp_path / f"artifact{len(list(tmp_path.glob('artifact*')))}"
    writer = ArtifactWriter(folder, "keras_subclass")
    record = provenance.write(writer, files, fallback=fallback or tmp_path, provenance=detail)
    stored = json.loads((folder / "keras_subclass/git.json").read_text())
    assert GitRecord.from_json(stored) == record
    patch = folder / "keras_subclass/uncommitted.diff.txt"
    assert patch.exists() == (record.patch_file is not None)
    return record, patch.read_bytes() if patch.exists() else b""


def test_clean_repository(tmp_path, repository):
    git(repository, "remote", "add", "origin", "git@example.invalid:team/repo.git")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    head = git(repository, "rev-parse", "HEAD")
    assert record == GitRecord(
        status="ok",
        commit=head,
        branch="main",
        remote_url="git@example.invalid:team/repo.git",
        dirty=False,
        repository_of="class",
        sources=(
            SourceClaim(
                path="pkg/net.py",
                blob=git(repository, "rev-parse", "HEAD:pkg/net.py"),
                status="identical",
                repository=0,
            ),
        ),
    )
    assert patch == b""
    assert provenance.tags(record) == {
        "mlflow.source.git.commit": head,
        "mlflow.source.git.branch": "main",
        "mlflow.source.git.repoURL": "git@example.invalid:team/repo.git",
        "mlflow.source.git.dirty": "false",
    }


@pytest.mark.parametrize("staged", [True, False])
def test_patch_reproduces_the_working_tree(tmp_path, repository, staged):
    (repository / "pkg/net.py").write_text(SOURCE + "# größer\n")
    (repository / "other.py").unlink()
    if staged:
        git(repository, "add", "-A")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert record.dirty
    assert record.sources[0].status == "modified"
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply", "-"], cwd=clone, input=patch, check=True)
    assert (clone / "pkg/net.py").read_text() == SOURCE + "# größer\n"
    assert not (clone / "other.py").exists()


def test_commit_only_writes_no_patch(tmp_path, repository):
    (repository / "pkg/net.py").write_text("changed")

    record, patch = learn(tmp_path, repository / "pkg/net.py", detail="commit")

    assert record.dirty
    assert patch == b""


def test_off_asks_nothing(tmp_path, repository):
    record, _ = learn(tmp_path, repository / "pkg/net.py", detail="off")

    assert record == GitRecord(status="off")
    assert provenance.tags(record) == {}


def test_untracked_source_makes_it_dirty(tmp_path, repository):
    (repository / "new.py").write_text("y = 2\n")

    record, _ = learn(tmp_path, repository / "new.py")

    assert record.dirty
    assert record.sources[0].status == "untracked"


def test_untracked_file_that_is_no_source_does_not(tmp_path, repository):
    (repository / "data.csv").write_text("1\n")

    assert learn(tmp_path, repository / "pkg/net.py")[0].dirty is False


def test_working_directory_where_the_class_is_in_no_repository(tmp_path, repository):
    outside = tmp_path / "outside.py"
    outside.write_text(SOURCE)

    record, _ = learn(tmp_path, outside, fallback=repository)

    assert record.repository_of == "working-directory"
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert record.sources == (SourceClaim(path="outside.py", blob=None, status="outside-repository", repository=None),)


def test_no_repository(tmp_path):
    record, _ = learn(tmp_path, tmp_path / "nothing.py")

    assert record == GitRecord(status="no-repository")


def test_no_commit_yet(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "net.py").write_text(SOURCE)

    record, _ = learn(tmp_path, tmp_path / "net.py")

    assert (record.status, record.commit, record.branch, record.dirty) == ("no-commit", None, "main", True)


def test_detached_head(tmp_path, repository):
    git(repository, "checkout", "-q", "--detach")

    record, _ = learn(tmp_path, repository / "pkg/net.py")

    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert record.branch is None


@pytest.mark.parametrize("kind", ["shallow", "worktree", "submodule"])
def test_unusual_checkouts(tmp_path, repository, kind):
    target = tmp_path / kind
    if kind == "shallow":
        git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", str(target))
    elif kind == "worktree":
        git(repository, "worktree", "add", "-q", "-b", "side", str(target))
    else:
        git(tmp_path, "init", "-q", str(target))
        git(target, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository), "sub")
        target = target / "sub"

    record, _ = learn(tmp_path, target / "pkg/net.py")

    assert record.status == "ok"
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert record.sources[0].status == "identical"


def test_sha256_repository(tmp_path):
    git(tmp_path, "init", "-q", "--object-format=sha256")
    (tmp_path / "net.py").write_text(SOURCE)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")

    record, _ = learn(tmp_path, tmp_path / "net.py")

    assert len(record.commit) == 64
    assert record.sources[0].status == "identical"


def test_line_ends_changed_by_checkout(tmp_path, repository):
    (repository / "pkg/net.py").write_bytes(SOURCE.replace("\n", "\r\n").encode())

    assert learn(tmp_path, repository / "pkg/net.py")[0].sources[0].status == "identical-after-filters"


def test_names_outside_ascii(tmp_path, repository):
    (repository / "größe.py").write_text(SOURCE)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "second")

    record, _ = learn(tmp_path, repository / "größe.py")

    assert record.sources[0].path == "größe.py"
    assert record.sources[0].status == "identical"


def test_patch_over_the_cap_is_left_out_with_the_reason(tmp_path, repository):
    (repository / "other.py").write_text("x" * (2**20 + 1))

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert record.dirty
    assert patch == b""
    assert record.patch_omitted == "the patch is larger than 1048576 bytes"


def test_environment_of_the_caller_points_nowhere_else(tmp_path, repository, monkeypatch):
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    before = dict(os.environ)

    record, _ = learn(tmp_path, repository / "pkg/net.py")

    assert dict(os.environ) == before
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert record.commit == git(repository, "rev-parse", "HEAD")


def test_index_is_not_touched(tmp_path, repository):
    os.utime(repository / "pkg/net.py", (1, 1))
    before = (repository / ".git/index").read_bytes()

    learn(tmp_path, repository / "pkg/net.py")

    assert (repository / ".git/index").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to somebody else")
def test_repository_of_somebody_else(tmp_path, repository):
    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 65534, 65534)

    record, _ = learn(tmp_path, repository / "pkg/net.py")

    assert record.status == "dubious-ownership"
    assert record.commit is None


def fake_git(folder, script):
    folder.mkdir()
    program = folder / "git"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("stub", ["exec sleep 60", "sleep 60"])
def test_hanging_git_ends_in_time(tmp_path, repository, monkeypatch, stub):
    """What git itself started is ended with it, or it would keep the pipe open."""
    path = fake_git(tmp_path / "bin", stub)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "_SECONDS", 0.5)

    assert learn(tmp_path, repository / "pkg/net.py")[0].status == "timeout"


def test_missing_git_is_recorded(tmp_path, repository):
    """In a fresh process, since GitPython looks for git when it is imported."""
    code = (
        "import sys, pathlib\n"
        "from mlflow_keras_subclass.artifacts import provenance\n"
        "from mlflow_keras_subclass.files import ArtifactWriter\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print(provenance.write(ArtifactWriter(folder, 'k'), [pathlib.Path(sys.argv[2])], fallback=folder).status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(repository / "pkg/net.py")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout.strip() == "git-missing"


def test_repository_cannot_run_code(tmp_path, repository):
    """Hooks, fsmonitor, external diff, textconv and filters stay silent; plain git shows that they would not."""
    canary = tmp_path / "canary"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $0 >> {canary}\ncat\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (repository / ".gitattributes").write_text("*.py diff=evil filter=evil\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "attributes")
    for key in (
        "core.fsmonitor",
        "diff.external",
        "diff.evil.textconv",
        "diff.evil.command",
        "filter.evil.clean",
        "filter.evil.process",
    ):
        git(repository, "config", key, str(program))
    git(repository, "config", "filter.evil.required", "true")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(program, hooks / "post-index-change")
    git(repository, "config", "core.hooksPath", str(hooks))
    (repository / "pkg/net.py").write_text(SOURCE + "# changed\n")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert not canary.exists()
    assert record.dirty
    assert b"+# changed" in patch
    subprocess.run(["git", "diff", "HEAD"], cwd=repository, capture_output=True, check=False, timeout=60)
    assert canary.exists()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://user:ghp_SECRET@example.invalid/o/r.git?token=abc#f", "https://example.invalid/o/r.git"),
        ("https://ghp_SECRET@example.invalid:8443/o/r.git", "https://example.invalid:8443/o/r.git"),
        ("ssh://git@example.invalid/o/r.git", "ssh://example.invalid/o/r.git"),
        ("git@example.invalid:o/r.git", "git@example.invalid:o/r.git"),
        ("user:p@ss@example.invalid:o/r.git", "example.invalid:o/r.git"),
        ("name@example.invalid:o/r.git?token=abc", "example.invalid:o/r.git"),
        ("file:///home/somebody/r", None),
        ("/home/somebody/r", None),
        ("../r", None),
        ("C:\\r", None),
    ],
)
def test_no_credential_or_local_path_leaves_in_the_url(tmp_path, repository, url, kept):
    git(repository, "remote", "add", "origin", url)

    assert learn(tmp_path, repository / "pkg/net.py")[0].remote_url == kept


def test_insteadof_is_not_expanded(tmp_path, repository, neutral_git):
    neutral_git.write_text(neutral_git.read_text() + '[url "https://t:SECRET@example.invalid/"]\n\tinsteadOf = gh:\n')
    git(repository, "remote", "add", "origin", "gh:o/r.git")

    assert learn(tmp_path, repository / "pkg/net.py")[0].remote_url == "gh:o/r.git"


def test_upstream_of_the_branch_comes_before_origin(tmp_path, repository):
    git(repository, "remote", "add", "origin", "https://example.invalid/origin")
    git(repository, "remote", "add", "fork", "https://example.invalid/fork")
    git(repository, "config", "branch.main.remote", "fork")

    assert learn(tmp_path, repository / "pkg/net.py")[0].remote_url == "https://example.invalid/fork"


KEY = "AKIA" + "IOSFODNN7EXAMPLQ"


def test_hunk_with_a_secret_stays_home(tmp_path, repository):
    """The other hunks of the patch go along, and the record names the lines, never the secret."""
    lines = [f"line{number} = {number}\n" for number in range(40)]
    (repository / "other.py").write_text("".join(lines))
    git(repository, "commit", "-q", "-a", "-m", "second")
    lines[2] = f'aws = "{KEY}"\n'
    lines[30] = "changed = True\n"
    (repository / "other.py").write_text("".join(lines))

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert KEY not in json.dumps(record.to_json()) + patch.decode()
    assert record.omissions == (Omission(path="other.py", first_line=1, last_line=6, reason="secret: AWS Access Key"),)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply", "-"], cwd=clone, input=patch, check=True)
    assert "changed = True" in (clone / "other.py").read_text()


@pytest.mark.parametrize("where", ["removed", "context", "new file"])
def test_secret_on_any_side_of_the_patch_is_found(tmp_path, repository, where):
    (repository / "other.py").write_text(f'aws = "{KEY}"\nx = 1\n')
    if where != "new file":
        git(repository, "commit", "-q", "-a", "-m", "second")
        (repository / "other.py").write_text("x = 1\n" if where == "removed" else f'aws = "{KEY}"\nx = 2\n')
    else:
        shutil.move(repository / "other.py", repository / "new.py")
        git(repository, "add", "-A")
    (repository / "pkg/net.py").write_text(SOURCE + "# changed\n")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert KEY.encode() not in patch
    assert b"# changed" in patch
    assert [item.reason for item in record.omissions] == ["secret: AWS Access Key"]


def test_nothing_left_of_the_patch_is_said(tmp_path, repository):
    (repository / "other.py").write_text("-----BEGIN RSA PRIVATE KEY-----\nabc\n")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert patch == b""
    assert record.patch_omitted == "nothing of it could be kept"
    assert record.omissions[0].reason == "secret: Private Key"


def test_binary_change_is_left_out_so_that_the_rest_applies(tmp_path, repository):
    (repository / "data.bin").write_bytes(b"\0\1\2")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "second")
    (repository / "data.bin").write_bytes(b"\0\1\3")
    (repository / "other.py").write_text("x = 2\n")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert record.omissions == (Omission(path="data.bin", first_line=0, last_line=0, reason="binary"),)
    git(repository, "checkout", "-q", "--", ".")
    subprocess.run(["git", "apply", "-"], cwd=repository, input=patch, check=True)
    assert (repository / "other.py").read_text() == "x = 2\n"


def test_sections_not_scanned_in_time_are_left_out():
    patch = b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-x\n+y\n"

    kept, omissions = cleaned(patch, time.monotonic() - 1)

    assert kept == b""
    assert omissions[0].reason == "not scanned for secrets in time"
    assert cleaned(patch, time.monotonic() + 60) == (patch, ())


def test_content_that_looks_like_the_head_of_a_patch(tmp_path, repository):
    (repository / "other.py").write_text("x = 1\n++ b/nothing\ndiff --git a/q b/q\n@@ -1 +1 @@\n-- a\n")

    record, patch = learn(tmp_path, repository / "pkg/net.py")

    assert record.omissions == ()
    git(repository, "checkout", "-q", "--", ".")
    subprocess.run(["git", "apply", "-"], cwd=repository, input=patch, check=True)
    assert "@@ -1 +1 @@" in (repository / "other.py").read_text()


def test_secret_in_stored_source_is_warned_of_with_its_line(tmp_path, repository, caplog):
    """The file is stored as it is, since the class comes back from those bytes; the warning shows no secret."""
    (repository / "pkg/net.py").write_text(f'{SOURCE}aws = "{KEY}"\nok = "{KEY}"  # pragma: allowlist secret\n')

    record, _ = learn(tmp_path, repository / "pkg/net.py")

    assert record.secrets == (Omission(path="net.py", first_line=3, last_line=3, reason="secret: AWS Access Key"),)
    assert "net.py, line 3, seems to hold a secret (AWS Access Key)" in caplog.text
    assert KEY not in caplog.text


def test_scanning_needs_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert lines_with_secrets([f'aws = "{KEY}"', "units = 64", 'name = "dense_1"'], "net.py") == {1: "AWS Access Key"}


def test_tag_of_the_commit(tmp_path, repository):
    git(repository, "tag", "v1.0")

    assert learn(tmp_path, repository / "pkg/net.py")[0].tag == "v1.0"


def test_ignored_source_is_untracked(tmp_path, repository):
    (repository / ".gitignore").write_text("secret_net.py\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "ignore")
    (repository / "secret_net.py").write_text(SOURCE)

    record, _ = learn(tmp_path, repository / "secret_net.py")

    assert (record.sources[0].status, record.dirty) == ("untracked", True)


def test_partial_clone_fetches_nothing(tmp_path, repository):
    """A blob that is not there would be fetched by git, over the network and by any command that is configured."""
    target, canary = tmp_path / "partial", tmp_path / "canary"
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", f"file://{repository}", str(target))
    git(target, "read-tree", "HEAD")
    git(target, "config", "remote.origin.uploadpack", f"touch {canary}; git-upload-pack")
    (target / "pkg").mkdir()
    (target / "pkg/net.py").write_text(SOURCE + "# changed\n")
    (target / "other.py").write_text("x = 1\n")

    record, _ = learn(tmp_path, target / "pkg/net.py")

    assert not canary.exists()
    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert record.sources[0].status == "modified"
    subprocess.run(["git", "diff", "HEAD"], cwd=target, capture_output=True, check=False, timeout=60)
    assert canary.exists()


def test_superproject_with_a_dirty_submodule(tmp_path, repository):
    """The class is in the superproject: what is changed in the submodule is not its change."""
    top = tmp_path / "super"
    git(tmp_path, "init", "-q", str(top))
    (top / "net.py").write_text(SOURCE)
    git(top, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository), "sub")
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "first")
    (top / "sub/other.py").write_text("x = 2\n")

    record, patch = learn(tmp_path, top / "net.py", top / "sub/other.py")

    assert (record.dirty, patch) == (False, b"")
    assert [(claim.path, claim.status, claim.repository) for claim in record.sources] == [
        ("net.py", "identical", 0),
        ("other.py", "modified", 1),
    ]
    assert record.others[0].commit == git(repository, "rev-parse", "HEAD")


def test_sources_of_several_repositories(tmp_path, repository):
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    (other / "base.py").write_text(SOURCE)
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "first")
    git(other, "remote", "add", "origin", "https://t:SECRET@example.invalid/o/base.git")

    record, _ = learn(tmp_path, repository / "pkg/net.py", other / "base.py")

    assert record.commit == git(repository, "rev-parse", "HEAD")
    assert [(claim.path, claim.status, claim.repository) for claim in record.sources] == [
        ("pkg/net.py", "identical", 0),
        ("base.py", "identical", 1),
    ]
    assert record.others == (
        OtherRepository(commit=git(other, "rev-parse", "HEAD"), remote_url="https://example.invalid/o/base.git"),
    )


def test_bare_repository_as_working_directory(tmp_path):
    git(tmp_path, "init", "-q", "--bare", "bare.git")

    assert learn(tmp_path, fallback=tmp_path / "bare.git")[0].status == "no-repository"


def test_autocrlf_checkout(tmp_path, repository):
    target = tmp_path / "crlf"
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(repository), str(target))
    assert b"\r\n" in (target / "pkg/net.py").read_bytes()

    record, _ = learn(tmp_path, target / "pkg/net.py")

    assert record.sources[0].status == "identical-after-filters"


def test_folder_that_is_a_link(tmp_path, repository):
    (tmp_path / "link").symlink_to(repository / "pkg")

    record, _ = learn(tmp_path, tmp_path / "link/net.py")

    assert (record.sources[0].path, record.sources[0].status) == ("pkg/net.py", "identical")


def test_path_of_the_repository_outside_ascii(tmp_path, repository):
    repository.rename(tmp_path / "größe [1] ☃")

    record, _ = learn(tmp_path, tmp_path / "größe [1] ☃/pkg/net.py")

    assert record.sources[0].status == "identical"


def test_name_that_git_would_take_for_a_pattern(tmp_path, repository):
    (repository / "n[e]t*.py").write_text("x = 3\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "second")

    assert learn(tmp_path, repository / "n[e]t*.py")[0].sources[0].status == "identical"


def test_file_that_lfs_keeps_elsewhere(tmp_path, repository):
    """The commit holds a pointer with the digest of the file; git-lfs itself is not needed and not run."""
    data = SOURCE.encode() * 3
    digest = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n"
    (repository / "big.py").write_text(pointer)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "pointer")
    (repository / "big.py").write_bytes(data)

    assert learn(tmp_path, repository / "big.py")[0].sources[0].status == "identical-after-filters"
    (repository / "big.py").write_bytes(data + b"#\n")
    assert learn(tmp_path, repository / "big.py")[0].sources[0].status == "modified"


def test_huge_tree(tmp_path, repository):
    """Twenty thousand files that are not tracked are not looked at."""
    for folder in range(20):
        (repository / f"data{folder}").mkdir()
        for number in range(1000):
            (repository / f"data{folder}/{number}").touch()

    record, _ = learn(tmp_path, repository / "pkg/net.py")

    assert (record.status, record.dirty) == ("ok", False)


class TestCheck:
    """What is claimed can be checked against any clone."""

    def claims(self, tmp_path, repository):
        (repository / "new.py").write_text("y = 2\n")
        (repository / "other.py").write_text("x = 2\n")
        return learn(
            tmp_path, repository / "pkg/net.py", repository / "new.py", repository / "other.py", tmp_path / "out.py"
        )[0]

    @pytest.mark.parametrize("bare", [True, False])
    def test_every_claim_holds(self, tmp_path, repository, bare):
        record = self.claims(tmp_path, repository)
        git(tmp_path, "clone", "-q", *(["--bare"] if bare else []), str(repository), "clone")

        checks = provenance.check(record, tmp_path / "clone")

        assert [(item.path, item.result) for item in checks] == [
            ("pkg/net.py", "confirmed"),
            ("new.py", "confirmed"),
            ("other.py", "confirmed"),
            ("out.py", "not-checkable"),
        ]

    def test_false_claim_is_refuted(self, tmp_path, repository):
        record = self.claims(tmp_path, repository)
        false = [replace(claim, blob="0" * 40, status="identical") for claim in record.sources[:1]]
        false += [replace(record.sources[1], path="pkg/net.py"), replace(record.sources[2], path="absent.py")]

        checks = provenance.check(replace(record, sources=tuple(false)), repository)

        assert [item.result for item in checks] == ["refuted"] * 3
        assert checks[0].found == git(repository, "rev-parse", "HEAD:pkg/net.py")

    def test_commit_that_is_not_there(self, tmp_path, repository):
        record = replace(self.claims(tmp_path, repository), commit="1" * 40)

        checks = provenance.check(record, repository)

        assert {item.result for item in checks} == {"not-checkable"}
        assert f"commit {'1' * 40} is not in" in checks[0].found


@pytest.mark.parametrize("value", [[], {"status": "ok"}, {**GitRecord(status="ok").to_json(), "sources": [{"x": 1}]}])
def test_damaged_record_is_refused(value):
    with pytest.raises(FormatError, match=r"git\.json"):
        GitRecord.from_json(value)


def test_paths_of_this_machine_do_not_enter_the_record(tmp_path, repository):
    record, _ = learn(tmp_path, repository / "pkg/net.py", Path(tmp_path / "elsewhere.py"))

    assert str(tmp_path) not in json.dumps(record.to_json())
