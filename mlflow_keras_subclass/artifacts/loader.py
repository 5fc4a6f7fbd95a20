"""The loader that travels with a model: the part of this package that loads and serves, below ``code/``.

Its name holds a digest of its content, and ``loader_module`` in MLmodel is that name: neither an installed copy of this
package nor the loader of another model can take its place, whatever was imported before. Its modules are those that
``pyfunc`` imports, directly or not; only the package's name in their import statements is changed.

Imports errors and manifest. Reads the source of this package, and never imports it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.manifest import BUNDLE_PREFIX, CODE_DIR
from mlflow_keras_subclass.version import __version__

__all__ = ["Bundle", "bundle", "choose", "imported", "installed_from_index", "is_bundle", "renamed", "write"]

_PACKAGE = "mlflow_keras_subclass"
_DISTRIBUTION = "mlflow-keras-subclass"
_FOLDER = Path(__file__).parent.parent
_ENTRY = f"{_PACKAGE}.pyfunc"

# Parsing the sources would cost the first save half a second. That these find the import statements and nothing else
# is tested against the parser, for every module of the package.
_IMPORT = re.compile(
    rb"^(?P<from>[ \t]*from )mlflow_keras_subclass(?P<rest>(?:\.\w+)* import (?:\([^)]*\)|[^\n]*))", re.MULTILINE
)
_PLAIN_IMPORT = re.compile(rb"^[ \t]*import mlflow_keras_subclass[^\n]*", re.MULTILINE)

_INIT = f'''"""The part of mlflow-keras-subclass {__version__} (Apache-2.0) that loads and serves this model."""

from {_ENTRY} import _load_pyfunc as _load_pyfunc
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A package of its own: its name, and the bytes of its files by their path below it."""

    name: str
    files: Mapping[str, bytes]


def choose(wanted: bool | None) -> str:
    """The ``loader_module`` of a new model: the bundle's name, or this package's if the caller wants no bundle.

    Raises:
        KerasSubclassError: No bundle is wanted, but what is installed here cannot be installed elsewhere by a
            requirement.
    """
    if wanted is None or wanted is True:
        return bundle().name
    if wanted is not False:
        raise KerasSubclassError(f"bundle: expected True, False or None, got {wanted!r}.")
    if not installed_from_index():
        raise KerasSubclassError(
            f"bundle=False: {_DISTRIBUTION} {__version__} was not installed from a package index here, so no "
            "requirement would bring it to a server. Leave bundle out, and the model carries its own loader."
        )
    return _PACKAGE


def installed_from_index() -> bool:
    """Whether this package came from a package index: no editable install, no file, no version control."""
    try:
        return importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") is None
    except importlib.metadata.PackageNotFoundError:
        return False


def is_bundle(loader_module: str) -> bool:
    """Whether a ``loader_module`` is that of a bundle."""
    return loader_module.startswith(BUNDLE_PREFIX)


def write(root: Path, loader_module: str) -> None:
    """Write the bundle below ``root/code``, if ``choose`` chose it."""
    if not is_bundle(loader_module):
        return
    bundled = bundle()
    for path, data in bundled.files.items():
        target = root / CODE_DIR / bundled.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@functools.cache
def bundle() -> Bundle:
    """The bundle of the package as it is on disk; always the same in one process."""
    sources = {"__init__.py": _INIT.encode("utf-8"), **_sources(_ENTRY)}
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(f"{path}\0{len(sources[path])}\0".encode() + sources[path])
    name = f"{BUNDLE_PREFIX}{digest.hexdigest()[:8]}"
    return Bundle(name=name, files={path: renamed(sources[path], name) for path in sorted(sources)})


def renamed(source: bytes, name: str) -> bytes:
    """``source`` with this package called ``name`` in its import statements; no other byte is changed.

    Raises:
        ValueError: A statement would bind the package's own name, which the rest of the source would go on using.
    """
    if found := _PLAIN_IMPORT.search(source):
        raise ValueError(f"expected 'from {_PACKAGE} import ...', got {found[0].decode()!r}")
    return _IMPORT.sub(lambda match: match["from"] + name.encode() + match["rest"], source)


def imported(source: bytes) -> Iterator[str]:
    """Names in this package that a source imports; of ``from a import b`` both ``a`` and ``a.b``, of which one is."""
    for match in _IMPORT.finditer(source):
        module, names = match["rest"].decode().split(" import ", maxsplit=1)
        yield _PACKAGE + module
        yield from (f"{_PACKAGE}{module}.{word}" for word in re.findall(r"\w+", names))


def _sources(entry: str) -> dict[str, bytes]:
    """The sources that importing ``entry`` reads, by their path below the package; the package's own root not."""
    found: dict[str, bytes] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        path = _path_of(module)
        if path is None or path in found or module == _PACKAGE:
            continue
        found[path] = (_FOLDER / path).read_bytes()
        waiting += [module.rpartition(".")[0], *imported(found[path])]
    return found


def _path_of(module: str) -> str | None:
    path = "/".join(module.split(".")[1:])
    return next((item for item in (f"{path}.py", f"{path}/__init__.py") if (_FOLDER / item).is_file()), None)
