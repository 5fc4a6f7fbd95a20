"""Type-tagged JSON to Python values: the inverse of the encoder."""

from __future__ import annotations

import base64
import builtins
import collections
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import ClassDefinitionError, FormatError
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.keras_api.configs import FOREIGN_LAYERS, reads_a_file

__all__ = ["Decoder"]

_DEFAULTS = ("bool", "dict", "float", "int", "list", "set", "str", "tuple")


class Decoder:
    """Decodes the values of one artifact.

    Args:
        api: The seam to Keras.
        definitions: The user's classes and functions by key.
        objects: The opaque objects by key.
        arrays: The stored arrays by name.
        documents: All JSON in which shared objects appear; written with sorted keys, so that a reference may come
            before the object it refers to.
    """

    def __init__(
        self,
        api: KerasApi,
        *,
        definitions: Mapping[str, Any],
        objects: Mapping[str, Any],
        arrays: Callable[[str], np.ndarray[Any, Any]],
        documents: Sequence[Any] = (),
    ) -> None:
        """Start with no object decoded."""
        self._api = api
        self._definitions = definitions
        self._objects = objects
        self._arrays = arrays
        self._shared: dict[int, Any] = {}
        self._first: dict[int, dict[str, Any]] = {}
        self._symbols: list[Any] = []

        self._layer_at: Callable[[str], Any] = _no_layers
        for document in documents:
            self._index(document)

    def decode(self, value: Any) -> Any:
        """The Python value that ``value`` was encoded from.

        Raises:
            FormatError: A tag is not known or its content has another form.
            ClassDefinitionError: A class, function or object it names was not shipped.
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        tag = next((key for key in value if key.startswith("$") and key != "$id"), None)
        if tag is None:
            return {key: self.decode(item) for key, item in value.items()}
        read = self._readers.get(tag)
        if read is None:
            raise FormatError(f"config: unknown tag {tag!r} in {value!r:.200}.")
        if value.get("$id") in self._shared:
            return self._shared[value["$id"]]
        found = read(self, value)
        if "$id" in value:
            self._shared[value["$id"]] = found
        return found

    def definition(self, key: Any) -> Any:
        """The user's class or function shipped under ``key``."""
        if key not in self._definitions:
            known = ", ".join(sorted(self._definitions)) or "none"
            raise ClassDefinitionError(f"config names the definition {key!r}, which is not at hand; at hand: {known}.")
        return self._definitions[key]

    def _index(self, value: Any) -> None:
        if isinstance(value, dict):
            if "$id" in value:
                self._first[value["$id"]] = value
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                self._index(item)

    def _reference(self, value: dict[str, Any]) -> Any:
        number = value["$ref"]
        if number not in self._shared and number not in self._first:
            raise FormatError(f"config: a reference to object {number!r}, which is not in the document.")
        return self._shared[number] if number in self._shared else self.decode(self._first[number])

    def _items(self, value: Any) -> list[Any]:
        return [self.decode(item) for item in value]

    def _dict(self, value: dict[str, Any]) -> Any:
        pairs = [(self.decode(key), self.decode(item)) for key, item in value["$dict"]]
        match value.get("type"):
            case None:
                return dict(pairs)
            case "OrderedDict":
                return collections.OrderedDict(pairs)
            case "defaultdict":
                default = value.get("default")
                if default is not None and default not in _DEFAULTS:
                    raise FormatError(f"config: a defaultdict of {default!r}; expected one of {', '.join(_DEFAULTS)}.")
                return collections.defaultdict(None if default is None else getattr(builtins, default), pairs)
        raise FormatError(f"config: unknown type of dict {value['type']!r}.")

    def _array(self, stored: Any) -> np.ndarray[Any, Any]:
        if isinstance(stored, str):
            return self._arrays(stored)
        shape = tuple(stored["shape"])
        if "objects" in stored:
            array = np.empty(len(stored["objects"]), dtype=object)
            array[:] = self._items(stored["objects"])
        else:
            array = np.array(stored["text"], dtype=np.dtype(stored["dtype"]))
        return array.reshape(shape)

    def _path(self, value: dict[str, Any]) -> Any:
        kinds = {kind.__name__: kind for kind in (pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath)}
        return kinds.get(value["type"], pathlib.Path)(value["$path"])

    def _dataclass(self, value: dict[str, Any]) -> Any:
        # Not through __init__: __post_init__ may derive or check, and has done so when the values were captured.
        kind = self.definition(value["$dataclass"])
        instance = kind.__new__(kind)
        for name, item in value["fields"].items():
            object.__setattr__(instance, name, self.decode(item))
        return instance

    def _instance(self, value: dict[str, Any]) -> Any:
        kind = self.definition(value["$instance"])
        instance = kind.__new__(kind)
        vars(instance).update({name: self.decode(item) for name, item in value["attributes"].items()})
        return instance

    def _class_of(self, spec: dict[str, Any]) -> Any:
        if "definition" in spec:
            return self.definition(spec["definition"])
        if "keras_object" in spec:
            return self._own_class(spec["keras_object"])
        if spec["keras_layer"] in FOREIGN_LAYERS:
            raise FormatError(f"config names the layer {spec['keras_layer']}, which runs what is not Keras; not read.")
        kind = self._api.layer_class(spec["keras_layer"])
        if kind is None:
            raise FormatError(f"config: keras.layers has no layer {spec['keras_layer']!r} (Keras {self._api.version}).")
        return kind

    def _own_class(self, place: str) -> Any:
        kind = self._api.class_at(place)
        if kind is None:
            raise FormatError(f"config: Keras {self._api.version} has no {place!r} of the kinds that are constructed.")
        return kind

    def constructed(self, spec: dict[str, Any], layer_at: Callable[[str], Any]) -> Any:
        """A layer made again from what ``encode_constructor`` returned; ``layer_at`` finds other layers by path."""
        self._layer_at = layer_at
        return self._construct({"$construct": spec})

    def _construct(self, value: dict[str, Any]) -> Any:
        spec = value["$construct"]
        args, kwargs = self.arguments(spec)
        if "keras_layer" in spec and reads_a_file(spec["keras_layer"], kwargs):
            raise FormatError(
                f"config: {spec['keras_layer']} would read its vocabulary from the file {kwargs['vocabulary']!r}, "
                "which is not in the model. Give the layer its vocabulary as a list before logging."
            )
        return self._class_of(spec)(*args, **kwargs)

    def arguments(self, spec: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of a constructor, from what ``Encoder.encode_arguments`` returned."""
        outer = self._symbols
        if "graph" in spec:
            graph = self.decode(spec["graph"])
            self._symbols = [*graph.inputs, *graph.outputs]
        try:
            return self._items(spec["args"]), {key: self.decode(item) for key, item in spec["kwargs"].items()}
        finally:
            self._symbols = outer

    def _symbol(self, value: dict[str, Any]) -> Any:
        number = value["$symbol"]
        if not (isinstance(number, int) and 0 <= number < len(self._symbols)):
            raise FormatError(
                f"config: symbolic tensor {number!r} is not one of the {len(self._symbols)} of its graph."
            )
        return self._symbols[number]

    def _from_config(self, value: dict[str, Any]) -> Any:
        # Of the user's own classes only: the code that reads the configuration is in the verified source.
        spec = value["$from_config"]
        return self.definition(spec["definition"]).from_config(self.decode(spec["config"]))

    def _sequential(self, value: dict[str, Any]) -> Any:
        spec = value["$sequential"]
        inputs = [(item["shape"], item["dtype"]) for item in spec["inputs"]]
        return self._api.sequential(inputs, self._items(spec["layers"]), spec["name"])

    def _functional(self, value: dict[str, Any]) -> Any:
        spec = value["$functional"]
        api, layers = self._api, {name: self.decode(item) for name, item in spec["layers"].items()}

        class _Decoded:
            """Stands in the graph's description for a layer that was decoded already."""

            @classmethod
            def from_config(cls, config: dict[str, Any]) -> Any:
                layer = layers[config["name"]]
                # The graph finds its layers by name, and automatic names differ from process to process.
                api.rename(layer, config["name"])
                return layer

        return api.functional(self.decode(spec["config"]), {"_Decoded": _Decoded})

    def _object(self, value: dict[str, Any]) -> Any:
        if value["$object"] not in self._objects:
            raise ClassDefinitionError(
                f"config names the opaque object {value['$object']!r} ({value.get('repr', '')}), which was not loaded: "
                "it can only come from objects.cloudpickle, and this load does not unpickle."
            )
        return self._objects[value["$object"]]

    def _tensorflow(self, name: str) -> Any:
        return getattr(importlib.import_module("tensorflow"), name)

    _readers: Mapping[str, Callable[[Decoder, dict[str, Any]], Any]] = {
        "$tuple": lambda self, value: tuple(self._items(value["$tuple"])),
        "$set": lambda self, value: set(self._items(value["$set"])),
        "$frozenset": lambda self, value: frozenset(self._items(value["$frozenset"])),
        "$deque": lambda self, value: collections.deque(self._items(value["$deque"])),
        "$dict": _dict,
        "$float": lambda self, value: float(value["$float"]),
        "$bytes": lambda self, value: base64.b64decode(value["$bytes"]),
        "$complex": lambda self, value: complex(*map(float, value["$complex"])),
        "$range": lambda self, value: range(*value["$range"]),
        "$slice": lambda self, value: slice(*self._items(value["$slice"])),
        "$ellipsis": lambda self, value: Ellipsis,
        "$array": lambda self, value: self._array(value["$array"]),
        "$scalar": lambda self, value: self._array(value["$scalar"])[()],
        "$tensor": lambda self, value: self._api.tensor(self._array(value["$tensor"])),
        "$dtype": lambda self, value: np.dtype(value["$dtype"]),
        "$tf_dtype": lambda self, value: self._tensorflow("dtypes").as_dtype(value["$tf_dtype"]),
        "$shape": lambda self, value: self._tensorflow("TensorShape")(value["$shape"]),
        "$path": _path,
        "$definition": lambda self, value: self.definition(value["$definition"]),
        "$enum": lambda self, value: self.definition(value["$enum"])[value["name"]],
        "$dataclass": _dataclass,
        "$namedtuple": lambda self, value: self.definition(value["$namedtuple"])(*self._items(value["items"])),
        "$instance": _instance,
        "$keras": lambda self, value: self._api.deserialize(value["$keras"]),
        "$construct": _construct,
        "$from_config": _from_config,
        "$sequential": _sequential,
        "$functional": _functional,
        "$symbol": _symbol,
        "$object": _object,
        "$ref": _reference,
        "$layer": lambda self, value: self._layer_at(value["$layer"]),
    }


def _no_layers(path: str) -> Any:
    raise FormatError(f"config: a reference to the layer {path!r} outside a layer's constructor.")
