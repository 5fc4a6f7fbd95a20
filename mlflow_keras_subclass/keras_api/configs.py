"""Which Keras configurations may be read: those that name nothing but Keras' own classes and functions.

Keras' safe mode has been left by several ways since 2024, so that it is the second line here and not the first. What
a model needs beyond this comes as a definition, from its own verified source. Imports nothing.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FOREIGN_LAYERS", "is_purely_keras", "reads_a_file"]

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
