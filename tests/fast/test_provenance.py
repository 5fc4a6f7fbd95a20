"""What git says of the class's source, in every state a repository can be in; logging never fails because of it."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_keras_subclass.artifacts import provenance
from mlflow_keras_subclass.artifacts.provenance import GitRecord, SourceClaim
from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import ArtifactWriter

SOURCE = "class Net:\n    pass\n"


@pytest.fixture(autouse=True)
def neutral_git(monkeypatch, tmp_path_factory):
    """The machine's own git configuration plays no part."""
    config = tmp_path_factory.mktemp("config") / "gitconfig"
    config.write_text("[user]\n\tname = T\n\temail = t@example.invalid\n[init]\n\tdefaultBranch = main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return config


def git(folder, *arguments, **options):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, **options)
    return done.stdout.strip()


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
            SourceClaim(path="pkg/net.py", blob=git(repository, "rev-parse", "HEAD:pkg/net.py"), status="identical"),
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
    assert record.sources == (SourceClaim(path="outside.py", blob=None, status="outside-repository"),)


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


def test_hanging_git_ends_in_time(tmp_path, repository, monkeypatch):
    path = fake_git(tmp_path / "bin", "exec sleep 60")
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


@pytest.mark.parametrize("value", [[], {"status": "ok"}, {**GitRecord(status="ok").to_json(), "sources": [{"x": 1}]}])
def test_damaged_record_is_refused(value):
    with pytest.raises(FormatError, match=r"git\.json"):
        GitRecord.from_json(value)


def test_paths_of_this_machine_do_not_enter_the_record(tmp_path, repository):
    record, _ = learn(tmp_path, repository / "pkg/net.py", Path(tmp_path / "elsewhere.py"))

    assert str(tmp_path) not in json.dumps(record.to_json())
