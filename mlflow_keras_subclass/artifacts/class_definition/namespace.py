"""The source route: runs the stored text of the user's modules under private names.

The module ``pkg.layers`` becomes ``_mks_<identity>.pkg.layers`` in ``sys.modules``, so that two versions of a package
live side by side and the user's own is never touched. The text runs unchanged: see ``imports`` for how its imports
find each other. Nothing stays behind when the text cannot be run.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.imports import Redirect
from mlflow_keras_subclass.artifacts.class_definition.origins import parents
from mlflow_keras_subclass.artifacts.class_definition.slicing import sliced
from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources
from mlflow_keras_subclass.registry_lock import NAMES_BY_CLASS, REGISTRY_LOCK

__all__ = ["Namespace"]

_REGISTRIES = ("keras.saving", "keras.src.saving.object_registration", "tf_keras.saving")


class Namespace:
    """The modules of one artifact, loaded from text when they are first asked for."""

    def __init__(
        self, sources: ShippedSources, *, main_lines: Iterable[tuple[int, int]] = (), main_package: str = ""
    ) -> None:
        """Serve ``sources``; of ``__main__`` only ``main_lines`` run, with relative imports from ``main_package``."""
        self.sources = sources
        self.redirect = Redirect(sources, self.load)
        self._main_lines = tuple(main_lines)
        self._main_package = main_package
        self._prefix = f"_mks_{sources.identity}"
        self._packages = {parent for name in sources.modules for parent in parents(name)}

    def load(self, name: str) -> types.ModuleType | None:
        """The module with the original name ``name``, run if it has not been; ``None`` if it was not stored."""
        if name not in self.sources.modules and name not in self._packages:
            return None
        shown = f"{self._prefix}.{name}"
        with REGISTRY_LOCK:
            if shown not in sys.modules:
                # Here and not only while the artifact is read: a function-level import comes much later.
                with _registries_kept(self._prefix):
                    self._load(name)
            return sys.modules[shown]

    @contextmanager
    def loading(self) -> Iterator[Namespace]:
        """On an error inside, ``sys.modules`` is put back as it was; no other thread loads in the meantime."""
        with REGISTRY_LOCK:
            before = set(sys.modules)
            try:
                yield self
            except BaseException:
                for name in set(sys.modules) - before:
                    if name.partition(".")[0] == self._prefix:
                        del sys.modules[name]
                raise

    def _load(self, name: str) -> types.ModuleType:
        shown = f"{self._prefix}.{name}"
        if shown in sys.modules:
            return sys.modules[shown]
        self._make_root()
        parent = name.rpartition(".")[0]
        package = self._load(parent) if parent else sys.modules[self._prefix]
        if shown in sys.modules:  # The package imported it.
            return sys.modules[shown]
        module = self._new_module(name, shown)
        sys.modules[shown] = module
        try:
            if name in self.sources.modules:
                exec(self._compiled(name), vars(module))
        except BaseException:
            sys.modules.pop(shown, None)
            raise
        setattr(package, name.rpartition(".")[2], sys.modules[shown])
        return sys.modules[shown]

    def _make_root(self) -> None:
        root = types.ModuleType(self._prefix, "The modules of one loaded model.")
        root.__path__ = []
        sys.modules.setdefault(self._prefix, root)

    def _new_module(self, name: str, shown: str) -> types.ModuleType:
        is_package = name in self._packages or self.sources.modules.get(name, (b"", False))[1]
        module = self.redirect.new_module(name, is_package=is_package, shown=shown)
        if name == "__main__":
            module.__package__ = f"{self._prefix}.{self._main_package}" if self._main_package else ""
        spec = importlib.machinery.ModuleSpec(shown, None, origin=getattr(module, "__file__", None))
        spec.loader = self.sources  # type: ignore[assignment] # as much of a loader as inspect and linecache use
        spec.submodule_search_locations = [] if is_package else None
        module.__spec__ = spec
        return module

    def _compiled(self, name: str) -> types.CodeType:
        data: Any = self.sources.modules[name][0]
        if name == "__main__":
            data = sliced(importlib.util.decode_source(data), self._main_lines)
        return compile(data, self.sources.file_of(name), "exec", dont_inherit=True)


@contextmanager
def _registries_kept(prefix: str) -> Iterator[None]:
    """Take out of Keras' tables what the decorators in the text put in; Keras itself is not imported for that."""
    before = {id(table): dict(table) for table in _tables()}
    try:
        yield
    finally:
        for table in _tables():
            # The classes are the values of one table, and the keys of the other.
            for key, value in list(table.items()):
                if _is_below(prefix, key) or _is_below(prefix, value):
                    del table[key]
            kept = before.get(id(table), {})
            table.update({key: value for key, value in kept.items() if key not in table})


def _is_below(prefix: str, item: Any) -> bool:
    return str(getattr(item, "__module__", "")).startswith(f"{prefix}.")


def _tables() -> list[dict[Any, Any]]:
    found = {}
    for module in _REGISTRIES:
        get = getattr(sys.modules.get(module), "get_custom_objects", None)
        if get is not None:
            registry = get()
            found[id(registry)] = registry
    for module, attribute in NAMES_BY_CLASS.values():
        names = getattr(sys.modules.get(module), attribute, None)
        if names is not None:
            found[id(names)] = names
    return list(found.values())
