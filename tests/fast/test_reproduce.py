"""The source of a model is put back as a working tree, or nothing is."""

import os
import time

import pytest
from repositories import git

from mlflow_keras_subclass.artifacts import provenance
from mlflow_keras_subclass.errors import IntegrityError, ProvenanceError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.manifest import Manifest, Versions, write_manifest
from mlflow_keras_subclass.reproduce import reproduce

pytestmark = pytest.mark.usefixtures("neutral_git")

NET = "from helper import K\n\n\nclass Net:\n    pass\n"


@pytest.fixture
def repository(tmp_path):
    top = tmp_path / "repo"
    (top / "pkg").mkdir(parents=True)
    git(top, "init", "-q")
    (top / "pkg/net.py").write_text(NET)
    (top / "data.txt").write_text("1\n")
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "first")
    return top


def save(root, repository, *names, record=None):
    """An artifact with the source and the provenance of these files, as a save writes it."""
    writer = ArtifactWriter(root, "keras_subclass")
    for name in names:
        writer.write_bytes(f"source/stored_{name.replace('/', '_')}", (repository / name).read_bytes())
    if record is None:
        provenance.write(writer, [repository / name for name in names], fallback=repository)
    else:
        writer.write_json("git.json", record.to_json())
    keys = ("python", "python_magic", "keras", "keras_distribution", "backend", "backend_version")
    keys += ("numpy", "cloudpickle", "mlflow")
    versions = Versions(**dict.fromkeys(keys, "1"), mlflow_keras_subclass="0")
    manifest = Manifest(
        format_version=1, created_at="2026-11-24T08:00:00Z", model_class="m:N", versions=versions, files=writer.entries
    )
    write_manifest(writer.directory, manifest)
    return root


def left_behind(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".mlflow")]


def test_dirty_tree_comes_back(tmp_path, repository):
    (repository / "pkg/net.py").write_text(NET + "# größer\n")
    (repository / "data.txt").unlink()
    (repository / "pkg/helper.py").write_text("K = 1\n")
    root = save(tmp_path / "model", repository, "pkg/net.py", "pkg/helper.py")

    made = reproduce(root, tmp_path / "there", repository=repository)

    assert made.path == tmp_path / "there"
    assert made.commit == git(made.path, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert made.patched
    assert [(item.path, item.status, item.result) for item in made.files] == [
        ("pkg/net.py", "modified", "exact"),
        ("pkg/helper.py", "untracked", "exact"),
    ]
    assert (made.path / "pkg/net.py").read_text() == NET + "# größer\n"
    assert not (made.path / "data.txt").exists()
    assert made.notes == ()
    assert left_behind(tmp_path) == []


def test_source_whose_hunk_was_left_out_comes_back_from_its_stored_copy(tmp_path, repository):
    (repository / "pkg/net.py").write_text(NET + 'aws = "AKIA' + 'IOSFODNN7EXAMPLQ"\n')
    root = save(tmp_path / "model", repository, "pkg/net.py")

    made = reproduce(root, tmp_path / "there", repository=repository)

    assert made.files[0].result == "exact"
    assert not made.patched
    assert any("left out: secret: AWS Access Key" in note for note in made.notes)


def test_commit_that_no_branch_leads_to(tmp_path, repository):
    git(repository, "checkout", "-q", "--detach")
    git(repository, "commit", "-q", "--allow-empty", "-m", "lost")
    root = save(tmp_path / "model", repository, "pkg/net.py")
    lost = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "main")

    assert reproduce(root, tmp_path / "there", repository=repository).commit == lost


@pytest.mark.parametrize("kind", ["full", "link", "file"])
def test_occupied_destination_is_not_touched(tmp_path, repository, kind):
    root = save(tmp_path / "model", repository, "pkg/net.py")
    dest = tmp_path / "there"
    if kind == "full":
        dest.mkdir()
        (dest / "mine").write_text("1")
    elif kind == "link":
        (tmp_path / "real").mkdir()
        dest.symlink_to(tmp_path / "real")
    else:
        dest.write_text("mine")

    with pytest.raises(ProvenanceError, match="there is not empty"):
        reproduce(root, dest, repository=repository)
    assert not any((tmp_path / "real").iterdir()) if kind == "link" else dest.exists()


def test_empty_destination_is_taken(tmp_path, repository):
    (tmp_path / "there").mkdir()
    root = save(tmp_path / "model", repository, "pkg/net.py")

    assert (reproduce(root, tmp_path / "there", repository=repository).path / "pkg/net.py").read_text() == NET


def test_clone_without_the_commit_leaves_nothing_behind(tmp_path, repository):
    root = save(tmp_path / "model", repository, "pkg/net.py")
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "first")
    before = sorted(path.name for path in tmp_path.iterdir())

    with pytest.raises(ProvenanceError, match=r"git could not put commit [0-9a-f]{40} back.*Pass repository="):
        reproduce(root, tmp_path / "there", repository=other)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_recorded(tmp_path, repository):
    root = save(tmp_path / "model", repository, "pkg/net.py", record=provenance.GitRecord(status="off"))

    with pytest.raises(ProvenanceError, match=r"no commit was recorded .*git: off"):
        reproduce(root, tmp_path / "there", repository=repository)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("url", ["ext::touch canary", "file:///etc", "--upload-pack=touch canary", "/etc", "../repo"])
def test_recorded_remote_that_is_no_url_of_a_server_is_not_used(tmp_path, repository, url, monkeypatch):
    """The remote is the model's own word, and git runs commands and reads files for some forms of it."""
    monkeypatch.chdir(tmp_path)
    head = git(repository, "rev-parse", "HEAD")
    record = provenance.GitRecord(status="ok", commit=head, remote_url=url)
    root = save(tmp_path / "model", repository, "pkg/net.py", record=record)

    with pytest.raises(ProvenanceError, match=r"is no https, ssh or git URL|git could not put"):
        reproduce(root, tmp_path / "there")
    assert not (tmp_path / "canary").exists()
    assert left_behind(tmp_path) == []


def test_remote_that_does_not_answer_ends_in_time(tmp_path, repository):
    import socket

    head = git(repository, "rev-parse", "HEAD")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/r.git"
        record = provenance.GitRecord(status="ok", commit=head, remote_url=url)
        root = save(tmp_path / "model", repository, "pkg/net.py", record=record)
        started = time.monotonic()

        with pytest.raises(ProvenanceError, match="timeout"):
            reproduce(root, tmp_path / "there", timeout_s=1)

    assert time.monotonic() - started < 60
    assert left_behind(tmp_path) == []


def test_claim_that_leaves_the_tree_writes_nothing(tmp_path, repository):
    (repository / "pkg/helper.py").write_text("K = 1\n")
    (repository / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    git(repository, "add", "out")
    git(repository, "commit", "-q", "-m", "link")
    blob = git(repository, "hash-object", "pkg/helper.py")
    for path in ("../evil.py", "out/evil.py", ".git/hooks/post-checkout", str(tmp_path / "outside/evil.py")):
        claim = provenance.SourceClaim(path=path, blob=blob, status="untracked", repository=0)
        head = git(repository, "rev-parse", "HEAD")
        record = provenance.GitRecord(status="ok", commit=head, sources=(claim,))
        root = save(tmp_path / f"model{abs(hash(path))}", repository, "pkg/helper.py", record=record)

        with pytest.raises(ProvenanceError, match="would be written outside the working tree"):
            reproduce(root, tmp_path / "there", repository=repository)

        assert not (tmp_path / "there").exists()
        assert not any((tmp_path / "outside").iterdir())


def test_no_hook_runs(tmp_path, repository):
    canary = tmp_path / "canary"
    templates = tmp_path / "templates/hooks"
    templates.mkdir(parents=True)
    for hook in ("post-checkout", "reference-transaction"):
        (templates / hook).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (templates / hook).chmod(0o755)
    git(tmp_path, "config", "--global", "init.templateDir", str(templates.parent))
    git(tmp_path, "config", "--global", "core.hooksPath", str(templates))
    root = save(tmp_path / "model", repository, "pkg/net.py")

    reproduce(root, tmp_path / "there", repository=repository)

    assert not canary.exists()
    git(tmp_path, "clone", "-q", str(repository), str(tmp_path / "plain"))
    assert canary.exists()


def test_changed_model_is_refused(tmp_path, repository):
    root = save(tmp_path / "model", repository, "pkg/net.py")
    (root / "keras_subclass/git.json").write_text("{}")

    with pytest.raises(IntegrityError, match=r"git\.json"):
        reproduce(root, tmp_path / "there", repository=repository)
    assert not os.path.lexists(tmp_path / "there")
