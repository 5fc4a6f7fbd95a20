"""Python values to type-tagged JSON; see the package's docstring for the tags."""

from __future__ import annotations

import base64
import collections
import dataclasses
import enum
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.errors import CaptureError, Finding
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.lookup import original_name
from mlflow_keras_subclass.tensors import array_sha256
from mlflow_keras_subclass.values.own_config import own_config

__all__ = ["Encoder", "EncodingError"]

_SEQUENCES = {tuple: "$tuple", set: "$set", frozenset: "$frozenset", collections.deque: "$deque"}
_PLAIN_STATE = (object.__reduce__, object.__reduce_ex__)


class EncodingError(CaptureError):
    """A value has no data form; ``where`` is the path to it below the value that was encoded."""

    def __init__(self, where: str, reason: str, *, findings: Sequence[Finding] = ()) -> None:
        """Say what is wrong with the value at ``where``; ``findings`` where several values are meant."""
        super().__init__(f"{where}: {reason}", findings=findings or [Finding(path=where, problem=reason)])
        self.where = where
        self.reason = reason


class Encoder:
    """Encodes the values of one artifact, and collects the definitions, opaque objects and arrays they refer to.

    Args:
        api: The seam to Keras.
        is_user_defined: Tells a class or function of the user's own source.
        arrays: Where arrays go, by name; ``prefix`` starts their names.
    """

    def __init__(self, api: KerasApi, is_user_defined: Callable[[Any], bool]) -> None:
        """Start with nothing collected."""
        self._api = api
        self._is_user_defined = is_user_defined
        self.definitions: dict[str, Any] = {}
        self.objects: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._keys: dict[int, str] = {}
        self._kept: list[Any] = []
        self._seen: dict[int, dict[str, Any]] = {}
        self._stored: dict[tuple[Any, ...], str] = {}
        self._active: set[int] = set()
        self._layer_paths: Mapping[int, str] = {}

    def encode(self, value: Any, where: str, *, opaque: bool = True) -> Any:
        """``value`` as JSON; ``where`` names it in errors and array names.

        With ``opaque``, what has no data form becomes an ``$object``, to be pickled; without, it is an error.

        Raises:
            EncodingError: The value, or one inside it, has no form that this artifact can hold.
        """
        return _Encoding(self, opaque).value(value, where)

    def encode_alone(self, value: Any, where: str) -> Any:
        """``value`` as JSON that refers to nothing outside itself, and never as an ``$object``."""
        with self._alone():
            return self.encode(value, where, opaque=False)

    def encode_constructor(self, layer: Any, where: str, layer_paths: Mapping[int, str]) -> dict[str, Any]:
        """The class and the recorded arguments of ``layer``, with other layers of the model as ``$layer`` paths.

        Raises:
            EncodingError: The arguments are not known, or one has no data form.
        """
        with self._alone():
            self._layer_paths = layer_paths
            return _Encoding(self, opaque=False).constructor(layer, where)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """What is encoded inside refers to nothing outside; a failure leaves no trace."""
        seen, self._seen = self._seen, {}
        before = dict(self.arrays), dict(self.definitions), dict(self._keys)
        try:
            yield
        except BaseException:
            self.arrays, self.definitions, self._keys = before
            raise
        finally:
            self._seen, self._layer_paths = seen, {}

    def encode_arguments(self, instance: Any, where: str) -> dict[str, Any]:
        """The recorded constructor arguments of ``instance``, opaque ones too; ``Decoder.arguments`` reads them.

        Raises:
            EncodingError: They are not known, or one of them has no form that this artifact can hold.
        """
        return _Encoding(self, opaque=True).arguments(instance, where)

    def definition(self, value: Any) -> str:
        """The key under which the user's class or function ``value`` is shipped."""
        if id(value) not in self._keys:
            key = _free_name(f"{original_name(value.__module__)}:{value.__qualname__}", self.definitions)
            self._keys[id(value)] = key
            self.definitions[key] = value
        return self._keys[id(value)]


class _Encoding:
    """One walk over one value; methods return JSON or raise ``EncodingError``."""

    def __init__(self, encoder: Encoder, opaque: bool) -> None:
        self._encoder = encoder
        self._api = encoder._api
        self._opaque = opaque
        self._symbols: dict[int, int] = {}

    def value(self, value: Any, where: str) -> Any:
        if value is None or value is True or value is False or type(value) in (int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        for encode in (self._container, self._scalar, self._array, self._callable, self._shared):
            found = encode(value, where)
            if found is not None:
                return found
        return self._opaque_object(value, where)

    # --- plain data

    def _container(self, value: Any, where: str) -> Any:
        kind = _untracked_type(value)
        if kind in (list, *_SEQUENCES):
            with self._no_cycle(value, where):
                items = [self.value(item, f"{where}[{number}]") for number, item in enumerate(_ordered(value, kind))]
            return items if kind is list else {_SEQUENCES[kind]: items}
        if kind in (dict, collections.OrderedDict, collections.defaultdict):
            with self._no_cycle(value, where):
                return self._mapping(value, kind, where)
        return None

    def _mapping(self, value: Mapping[Any, Any], kind: type, where: str) -> Any:
        pairs = [
            [self.value(key, f"key of {where}"), self.value(item, f"{where}[{key!r}]")] for key, item in value.items()
        ]
        if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
            # A JSON object whose keys are sorted when written: the order is kept beside it only where it differs.
            plain = {key: item for key, item in pairs}
            return plain if list(plain) == sorted(plain) else {"$dict": pairs}
        found: dict[str, Any] = {"$dict": pairs}
        if kind is not dict:
            found["type"] = kind.__name__
        if isinstance(value, collections.defaultdict) and value.default_factory is not None:
            found["default"] = value.default_factory.__name__
            if value.default_factory not in (int, float, str, list, dict, set, tuple, bool):
                raise EncodingError(
                    where, f"defaultdict of {value.default_factory!r}: only built-in defaults are stored"
                )
        return found

    def _scalar(self, value: Any, where: str) -> Any:
        match value:
            case bytes():
                return {"$bytes": base64.b64encode(value).decode("ascii")}
            case complex() if type(value) is complex:
                return {"$complex": [repr(value.real), repr(value.imag)]}
            case range():
                return {"$range": [value.start, value.stop, value.step]}
            case slice():
                return {"$slice": [self.value(part, where) for part in (value.start, value.stop, value.step)]}
            case pathlib.PurePath() if type(value).__module__.startswith("pathlib"):
                return {"$path": str(value), "type": type(value).__name__}
            case np.dtype() if not value.hasobject and value.names is None:
                return {"$dtype": value.str}
        if value is Ellipsis:
            return {"$ellipsis": True}
        if type(value).__module__.startswith("tensorflow.") and type(value).__name__ == "DType":
            return {"$tf_dtype": value.name}
        if type(value).__module__.startswith("tensorflow.") and type(value).__name__ == "TensorShape":
            return {"$shape": None if value.rank is None else value.as_list()}
        return None

    def _array(self, value: Any, where: str) -> Any:
        if isinstance(value, np.generic):
            return {"$scalar": self._store(np.asarray(value), where)}
        if type(value) is np.ndarray:
            return {"$array": self._store(value, where)}
        if self._api.is_tensor(value):
            return {"$tensor": self._store(self._api.value(value), where)}
        return None

    def _store(self, value: np.ndarray[Any, Any], where: str) -> Any:
        if value.dtype == object:
            return {"objects": self.value(value.ravel().tolist(), where), "shape": list(value.shape)}
        if value.dtype.kind in "USMmV" and value.dtype.name != "bfloat16":
            return {"text": value.astype(str).ravel().tolist(), "shape": list(value.shape), "dtype": value.dtype.str}
        content = (value.dtype.str, value.shape, array_sha256(value))
        known = self._encoder._stored.get(content)
        if known in self._encoder.arrays:
            return known
        name = _free_name(where, self._encoder.arrays)
        self._encoder.arrays[name] = value
        self._encoder._stored[content] = name
        return name

    # --- classes, functions and Keras' own objects

    def _callable(self, value: Any, where: str) -> Any:
        if not isinstance(value, type) and not (callable(value) and hasattr(value, "__qualname__")):
            return None
        if not isinstance(value, type) and not hasattr(value, "__code__"):
            return None
        if self._encoder._is_user_defined(value):
            local = "<lambda>" in value.__qualname__ or getattr(value, "__closure__", None)
            return None if local and not isinstance(value, type) else {"$definition": self._encoder.definition(value)}
        return self._keras_function(value)

    def _keras_function(self, value: Any) -> Any:
        if not self._api.is_own(value):
            return None
        try:
            config = self._api.serialize(value)
            return {"$keras": config} if self._api.deserialize(config) is value else None
        except (ValueError, TypeError, AttributeError, NotImplementedError):
            return None

    # --- objects with an identity

    def _shared(self, value: Any, where: str) -> Any:
        seen = self._encoder._seen
        if id(value) in self._encoder._layer_paths:
            return {"$layer": self._encoder._layer_paths[id(value)]}
        if id(value) in seen:
            first = seen[id(value)]
            first.setdefault("$id", len([item for item in seen.values() if "$id" in item]))
            return {"$ref": first["$id"]}
        encode = self._encoding_of(value)
        if encode is None:
            return None
        with self._no_cycle(value, where):
            found = encode(value, where)
        if found is not None and not isinstance(value, enum.Enum):
            seen[id(value)] = found
            self._encoder._kept.append(value)
        return found

    def _encoding_of(self, value: Any) -> Callable[[Any, str], Any] | None:
        kind, api = type(value), self._api
        user = self._encoder._is_user_defined(kind)
        named = user or _is_importable(kind)
        if isinstance(value, enum.Enum):
            return self._enum if named else None
        if api.is_functional(value):
            return self._functional
        if api.is_sequential(value):
            return self._sequential
        if api.is_keras_object(value):
            return self._own_keras_object if api.is_own(value) else self._user_keras_object
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._namedtuple if named else None
        if dataclasses.is_dataclass(value) and all(field.init for field in dataclasses.fields(value)):
            return self._dataclass if named else None
        return self._instance if user and _has_plain_state(kind) else None

    def _enum(self, value: enum.Enum, where: str) -> Any:
        return {"$enum": self._encoder.definition(type(value)), "name": value.name}

    def _namedtuple(self, value: Any, where: str) -> Any:
        items = [self.value(getattr(value, name), f"{where}.{name}") for name in value._fields]
        return {"$namedtuple": self._encoder.definition(type(value)), "items": items}

    def _dataclass(self, value: Any, where: str) -> Any:
        names = [field.name for field in dataclasses.fields(value)]
        content = {name: self.value(getattr(value, name), f"{where}.{name}") for name in names}
        return {"$dataclass": self._encoder.definition(type(value)), "fields": content}

    def _instance(self, value: Any, where: str) -> Any:
        content = {name: self.value(item, f"{where}.{name}") for name, item in vars(value).items()}
        return {"$instance": self._encoder.definition(type(value)), "attributes": content}

    def _own_keras_object(self, value: Any, where: str) -> Any:
        if id(value) in self._symbols:
            return {"$symbol": self._symbols[id(value)]}
        if self._api.is_symbolic(value) or self._api.is_variable(value):
            raise EncodingError(
                where, f"a {type(value).__name__} is no value that can be stored; pass its shape or value"
            )
        try:
            config = self._api.serialize(value)
        except (TypeError, ValueError, NotImplementedError, AttributeError):
            config = None
        if config is not None and self._api.is_purely_own(config):
            return {"$keras": config}
        named = {"keras_layer": type(value).__name__}
        if not self._api.is_layer(value):
            # One that holds something of the user's without a config, as an optimizer its schedule.
            place = self._api.place_of_class(type(value))
            if place is None or recorder.constructor_arguments(value) is None:
                return None
            named = {"keras_object": place}
        return {"$construct": {**named, **self.arguments(value, where)}}

    def _user_keras_object(self, value: Any, where: str) -> Any:
        kind, arguments = type(value), recorder.constructor_arguments(value)
        if (config := own_config(self._api, value, arguments)) is not None:
            encoded = self.value(config, where)
            return {"$from_config": {"definition": self._encoder.definition(kind), "config": encoded}}
        if arguments is None and not self._api.is_layer(value):
            return self._instance(value, where) if _has_plain_state(kind) else None
        return {"$construct": {"definition": self._encoder.definition(kind), **self.arguments(value, where)}}

    def constructor(self, layer: Any, where: str) -> dict[str, Any]:
        """The class and arguments of one layer, which itself is not written as a reference."""
        if self._api.is_sequential(layer):
            layers = [self.value(item, f"{where}.layers[{number}]") for number, item in enumerate(layer.layers)]
            return {"keras_layer": "Sequential", "args": [layers], "kwargs": {"name": layer.name}}
        kind = type(layer)
        own = self._api.is_own(layer)
        named = {"keras_layer": kind.__name__} if own else {"definition": self._encoder.definition(kind)}
        return {**named, **self.arguments(layer, where)}

    def arguments(self, value: Any, where: str) -> dict[str, Any]:
        """What ``value`` was constructed with."""
        arguments = recorder.constructor_arguments(value)
        if arguments is None:
            raise EncodingError(
                where,
                f"the arguments that this {type(value).__qualname__} was constructed with are not known. Import "
                "mlflow_keras_subclass before the model is built, give the class a get_config, or pass config=",
            )
        with self._graph_of(value, arguments, where) as graph:
            named: dict[Any, Any] = {**dict(enumerate(arguments.args)), **arguments.kwargs}
            encoded = self._each((key, item, f"{where}({key})") for key, item in named.items())
            args = [encoded[number] for number in range(len(arguments.args))]
            return graph | {"args": args, "kwargs": {key: encoded[key] for key in arguments.kwargs}}

    def _each(self, items: Iterable[tuple[Any, Any, str]]) -> dict[Any, Any]:
        """Every value by its key; one error names all values that have no form."""
        encoded, errors = {}, []
        for key, item, where in items:
            try:
                encoded[key] = self.value(item, where)
            except EncodingError as error:
                errors.append(error)
        if errors:
            found = [finding for error in errors for finding in error.findings]
            raise EncodingError(errors[0].where, errors[0].reason, findings=found)
        return encoded

    @contextmanager
    def _graph_of(self, value: Any, arguments: recorder.Arguments, where: str) -> Iterator[dict[str, Any]]:
        """Symbolic tensors among the arguments can be encoded inside: ``M(inputs, outputs)`` of a user's class ``M``.

        They are the inputs and outputs of a Functional model, which is the graph between them.
        """
        outer, self._symbols = self._symbols, {}
        tensors = list(_symbolic(self._api, [*arguments.args, *arguments.kwargs.values()]))
        graph: dict[str, Any] = {}
        if tensors and isinstance(value, self._api.functional_class):
            inputs = {id(tensor): tensor for tensor in value.inputs}
            outputs = {id(tensor): tensor for tensor in tensors if id(tensor) not in inputs}
            with self._api.name_scope():
                model = self._api.functional_class([*inputs.values()], [*(outputs or inputs).values()])
            graph = {"graph": self._functional(model, where)}
            self._symbols = {key: number for number, key in enumerate([*inputs, *outputs])}
        try:
            yield graph
        finally:
            self._symbols = outer

    def _sequential(self, value: Any, where: str) -> Any:
        layers = [self.value(layer, f"{where}.layers[{number}]") for number, layer in enumerate(value.layers)]
        inputs = [
            {"shape": list(self._api.batch_shape(layer)), "dtype": str(layer.dtype)}
            for layer in self._api.sublayers(value)[:1]
            if type(layer).__name__ == "InputLayer"
        ]
        return {"$sequential": {"name": value.name, "inputs": inputs, "layers": layers}}

    def _functional(self, value: Any, where: str) -> Any:
        mine = [layer for layer in value.layers if not _serialises_itself(self._api, layer)]
        encoded = {layer.name: self.value(layer, f"{where}.{layer.name}") for layer in mine}
        with _stand_in_configs(mine):
            config = value.get_config()
        for entry in config["layers"]:
            if entry["name"] in encoded:
                for key in ("module", "build_config", "compile_config"):
                    entry.pop(key, None)
                entry.update(class_name="_Decoded", registered_name="_Decoded", config={"name": entry["name"]})
        return {"$functional": {"config": self.value(_plain_json(config), where), "layers": encoded}}

    # --- the rest

    def _opaque_object(self, value: Any, where: str) -> Any:
        if not self._opaque:
            raise EncodingError(where, f"a {type(value).__module__}.{type(value).__qualname__} has no data form")
        for key, known in self._encoder.objects.items():
            if known is value:
                return {"$object": key}
        key = _free_name(where, self._encoder.objects)
        self._encoder.objects[key] = value
        name = getattr(value, "__qualname__", "") if callable(value) else ""
        return {"$object": key, "repr": f"{type(value).__name__}: {name}".strip(": ")}

    @contextmanager
    def _no_cycle(self, value: Any, where: str) -> Iterator[None]:
        active = self._encoder._active
        if id(value) in active:
            raise EncodingError(where, f"the {type(value).__qualname__} contains itself")
        active.add(id(value))
        try:
            yield
        finally:
            active.discard(id(value))


def _symbolic(api: KerasApi, value: Any) -> Iterator[Any]:
    if api.is_symbolic(value):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _symbolic(api, item)


def _is_importable(kind: type) -> bool:
    """Whether ``kind`` is an installed package's, found in its module under its name; a built-in is none."""
    found: Any = sys.modules.get(kind.__module__)
    if found is None or kind.__module__ in ("builtins", "__main__"):
        return False
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _untracked_type(value: Any) -> type:
    """The type of a container, as the user gave it: Keras wraps lists, dicts and sets that are attributes."""
    kind = type(value)
    if kind.__module__.startswith("keras.") and kind.__name__ in ("TrackedList", "TrackedDict", "TrackedSet"):
        return {"TrackedList": list, "TrackedDict": dict, "TrackedSet": set}[kind.__name__]
    # TensorFlow wraps the containers of tf.Module and of layers of older Keras versions.
    if kind.__name__ in ("ListWrapper", "_DictWrapper") and kind.__module__.startswith("tensorflow."):
        return list if kind.__name__ == "ListWrapper" else dict
    return kind


def _ordered(value: Any, kind: type) -> list[Any]:
    return sorted(value, key=repr) if kind in (set, frozenset) else list(value)


def _free_name(where: str, taken: Container[str]) -> str:
    """``where``, or the first of ``where#2``, ``where#3``… that is not taken."""
    numbered = (f"{where}#{number}" for number in itertools.count(2))
    return where if where not in taken else next(name for name in numbered if name not in taken)


def _has_plain_state(kind: type) -> bool:
    """Whether an instance is fully described by its ``__dict__``."""
    hooks = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")
    own = {name for base in kind.__mro__[:-1] for name in vars(base)}
    return (
        not own.intersection(hooks)
        and "__slots__" not in own
        and all("__new__" not in vars(base) for base in kind.__mro__[:-1])
    )


def _serialises_itself(api: KerasApi, layer: Any) -> bool:
    try:
        return api.is_own(layer) and api.is_purely_own(api.serialize(layer))
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return False


def _plain_json(config: Any) -> Any:
    """A Keras configuration with its tuples kept and its dict subclasses made plain."""
    if isinstance(config, Mapping):
        return {key: _plain_json(item) for key, item in config.items()}
    if isinstance(config, list | tuple) and not hasattr(config, "_fields"):
        return type(config)([_plain_json(item) for item in config]) if type(config) in (list, tuple) else list(config)
    return config


@contextmanager
def _stand_in_configs(layers: list[Any]) -> Iterator[None]:
    """Give ``layers`` a trivial ``get_config`` while a Functional model describes its graph around them."""
    try:
        for layer in layers:
            vars(layer)["get_config"] = lambda name=layer.name: {"name": name}
        yield
    finally:
        for layer in layers:
            vars(layer).pop("get_config", None)
