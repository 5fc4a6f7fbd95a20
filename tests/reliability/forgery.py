"""Changes an artifact and all its digests with it, as an attacker who can write to the store would."""

import hashlib
import json
import shutil

import yaml


def forged(source, target, edit):
    """A copy of the model directory ``source`` that ``edit(folder)`` changed, consistent again in itself."""
    shutil.copytree(source, target, symlinks=True)
    edit(target)
    reseal(target)
    return target


def reseal(root):
    """Write manifest and MLmodel so that they agree with the files."""
    manifest = root / "keras_subclass/manifest.json"
    content = json.loads(manifest.read_text())
    files = [path for path in sorted((root / "keras_subclass").rglob("*")) if path.is_file() and path != manifest]
    files += [path for path in sorted((root / "code").rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    content["files"] = [
        {
            "path": path.relative_to(root).as_posix(),
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(files, key=lambda item: item.relative_to(root).as_posix())
    ]
    manifest.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    described = yaml.safe_load((root / "MLmodel").read_text())
    described["flavors"]["keras_subclass"]["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (root / "MLmodel").write_text(yaml.safe_dump(described))


def edit_json(name, change):
    """An ``edit`` for ``forged`` that changes the content of one JSON file in place."""

    def edit(root):
        path = root / "keras_subclass" / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit
