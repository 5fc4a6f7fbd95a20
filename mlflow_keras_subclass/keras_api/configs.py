"""Which Keras configurations may be read: those that name nothing but Keras' own classes and functions.

Keras' safe mode has been left by several ways since 2024, so that it is the second line here and not the first. What
a model needs beyond this comes as a definition, from its own verified source. An older release of Keras reads what a
newer one wrote, where the newer one's arguments were left out. Imports nothing.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

__all__ = ["FOREIGN_LAYERS", "is_purely_keras", "on_every_backend", "reads_a_file", "without_unknown_nulls"]

# Layers of Keras that run what is not Keras: a SavedModel from a path, or a pickled module.
FOREIGN_LAYERS = frozenset({"TFSMLayer", "TorchModuleWrapper"})
_NOT_DATA = FOREIGN_LAYERS | {"Lambda", "__lambda__"}
_LOOKUPS = frozenset({"IntegerLookup", "StringLookup", "TextVectorization"})


def is_purely_keras(keras: Any, config: Any) -> bool:
    """Whether a configuration names nothing but classes of the package ``keras``, no marshalled code and no file."""
    if isinstance(config, dict):
        name = config.get("class_name")
        if name in _NOT_DATA or reads_a_file(name, config.get("config")):
            return False
        if "class_name" in config and "module" in config:
            module = str(config["module"] or "")
            registered = config.get("registered_name")
            if registered not in (None, name) or ">" in str(registered):
                return False
            if not (module == "builtins" or module.split(".")[0] in (keras.__name__, "keras")):
                return False
            if module == "builtins" and registered == "function":
                return _is_keras_function_name(keras, config.get("config"))
        return all(is_purely_keras(keras, item) for item in config.values())
    if isinstance(config, list | tuple):
        return all(is_purely_keras(keras, item) for item in config)
    return True


def reads_a_file(layer: Any, arguments: Any) -> bool:
    """Whether a layer of Keras of this name opens a file when it is made with these keyword arguments."""
    return layer in _LOOKUPS and isinstance(arguments, dict) and isinstance(arguments.get("vocabulary"), str)


def _is_keras_function_name(keras: Any, name: Any) -> bool:
    homes = (keras.activations, keras.losses, keras.metrics, getattr(keras, "ops", None), keras.initializers)
    return isinstance(name, str) and any(hasattr(home, name) for home in homes)


def on_every_backend(config: Any) -> Any:
    """A configuration that names classes where Keras offers them, whatever the backend is.

    On torch an optimizer is of a class below the one that is offered, and Keras 3.0 to 3.15.1 names the module of that
    one, which no other backend can import.
    """
    if type(config) in (list, tuple):
        return type(config)([on_every_backend(item) for item in config])
    if not isinstance(config, dict):
        return config
    found = {key: on_every_backend(item) for key, item in config.items()}
    if str(found.get("module", "")).startswith("keras.src.backend.torch.optimizers."):
        found |= {"module": "keras.optimizers", "registered_name": None}
    return found


def without_unknown_nulls(keras: Any, config: Any) -> Any:
    """A configuration without the arguments that Keras' classes here do not take, and that are ``None``.

    A newer release of Keras writes arguments that an older one does not know: ``quantization_config`` of a ``Dense``
    since 3.13. One that is ``None`` asks for nothing, so that the object is the same without it. One with a value
    stays, and is refused by the class.
    """
    if type(config) in (list, tuple):
        return type(config)([without_unknown_nulls(keras, item) for item in config])
    if not isinstance(config, dict):
        return config
    cleaned = {key: without_unknown_nulls(keras, item) for key, item in config.items()}
    arguments, kind = cleaned.get("config"), _class_named(keras, config)
    if kind is None or not isinstance(arguments, dict):
        return cleaned
    known = _arguments_of(kind)
    return cleaned | {"config": {key: item for key, item in arguments.items() if item is not None or key in known}}


@functools.cache
def _arguments_of(kind: type) -> frozenset[str]:
    """What the constructors of a class of Keras and of its bases take by name."""
    constructors = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    return frozenset(name for constructor in constructors for name in inspect.signature(constructor).parameters)


def _class_named(keras: Any, config: dict[str, Any]) -> type | None:
    found = keras
    for name in (*str(config.get("module", "")).split(".")[1:], str(config.get("class_name", ""))):
        found = getattr(found, name, None)
    return found if isinstance(found, type) else None
