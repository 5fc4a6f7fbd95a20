"""What Keras does otherwise on the one thread that rebuilds a model: it draws nothing and fetches no weights.

Every variable gets its stored value afterwards, so neither initial values nor pretrained weights are needed, nor the
network or file that these came from. Other threads of the process go on as before. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["on_this_thread", "without_pretrained_weights"]


def on_this_thread(inside: Callable[..., Any], outside: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is ``inside`` on the thread that asks for it now, and ``outside`` on every other."""
    thread = threading.get_ident()

    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (inside if threading.get_ident() == thread else outside)(*args, **kwargs)

    return chosen


@contextlib.contextmanager
def without_pretrained_weights(keras: Any) -> Iterator[None]:
    """``load_weights`` does nothing, and ``keras.applications`` neither downloads weights nor asks for their file."""
    model = keras.Model
    replaced = [
        (model, "load_weights", on_this_thread(_nothing_loaded, model.load_weights)),
        *((module, files, _Files(getattr(module, files))) for module, files in _applications(keras)),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def _applications(keras: Any) -> list[tuple[Any, str]]:
    """The modules of ``keras.applications``, and the (private) name through which each of them fetches its weights."""
    distribution = keras.__name__.partition(".")[0]
    files = {"keras": "file_utils", "tf_keras": "data_utils"}[distribution]
    importlib.import_module(f"{distribution}.applications")
    modules = [m for name, m in sys.modules.items() if name.startswith(f"{distribution}.src.applications.")]
    return [(module, files) for module in modules if hasattr(module, files)]


class _Files:
    """Keras' ``file_utils`` or ``data_utils`` for which every file of weights is there."""

    def __init__(self, files: Any) -> None:
        self._files = files
        self.get_file = on_this_thread(self._weights_file, files.get_file)
        self.exists = on_this_thread(lambda path: True, getattr(files, "exists", bool))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def _weights_file(self, fname: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if fname is not None and fname.endswith(".h5"):
            return fname
        return self._files.get_file(fname, *args, **kwargs)


class _Restored:
    """What ``load_weights`` of Keras 2 returns for a checkpoint of TensorFlow."""

    def assert_consumed(self) -> _Restored:
        return self

    assert_existing_objects_matched = assert_nontrivial_match = expect_partial = assert_consumed


def _nothing_loaded(*_args: Any, **_kwargs: Any) -> _Restored:
    return _Restored()
