"""``structure.json``: what every layer is and how it was built, and the plain attributes of the whole tree.

The rebuild needs neither a sample input nor a forward pass: every layer's build arguments are recorded by attribute
path, and replayed top down (``tree build``). That reaches layers that ``call`` never reaches, and builds in the way
that each class does itself. Imports errors, manifest, model_tree, keras_api and values.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mlflow_keras_subclass.errors import FormatError, RebuildError
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.model_tree import Attribute, ModelTree, is_unreachable
from mlflow_keras_subclass.values import Decoder, Encoder, EncodingError

__all__ = [
    "build_tree",
    "capture_attribute",
    "capture_attributes",
    "capture_layers",
    "compare_attributes",
    "compare_layers",
    "mismatched_layers",
    "put_layers",
    "restore_attributes",
    "restore_order",
    "set_trainable",
]

_AUTOMATIC_NUMBER = re.compile(r"_\d+$")


def capture_layers(api: KerasApi, tree: ModelTree, encoder: Encoder) -> dict[str, Any]:
    """Each layer by path: class, name, how it was built, dtype policy, trainable flag."""
    paths, layer_paths = tree.variable_paths(), tree.layer_paths()
    return {
        path: {
            **_capture_layer(api, path, layer, encoder),
            "variables": _paths(api.own_variables(layer), paths),
            "layers": _paths(api.sublayers(layer), layer_paths),
            "constructor": None if path == "" else _capture_constructor(api, path, layer, encoder, layer_paths),
        }
        for path, layer in tree.layers.items()
    }


def _paths(items: Iterable[Any], paths: Mapping[int, str]) -> list[str]:
    return [paths[id(item)] for item in items if id(item) in paths]


def _capture_layer(api: KerasApi, path: str, layer: Any, encoder: Encoder) -> dict[str, Any]:
    where = f"{path or 'model'}: build arguments"
    record: dict[str, Any] = {
        "class": _class_name(layer),
        "name": layer.name,
        "scope": api.scope(layer),
        "built": bool(layer.built),
        "dtype_policy": api.dtype_policy(layer),
        "trainable": bool(layer.trainable),
        "build": encoder.encode(api.build_arguments(layer), where),
    }
    if api.overrides_build_config(layer):
        record["build_config"] = encoder.encode(layer.get_build_config(), where)
    if (adapter := api.lora(layer)) is not None:
        record["lora"] = adapter
    return record


def _capture_constructor(
    api: KerasApi, path: str, layer: Any, encoder: Encoder, layer_paths: Mapping[int, str]
) -> dict[str, Any] | None:
    """How to make one layer again, other layers by path; ``None`` if that is not known or has no data form.

    Read only for layers that the model's constructor does not make: a head put on afterwards, say.
    """
    if api.is_functional(layer):
        return None
    try:
        return encoder.encode_constructor(layer, f"layer {path}", layer_paths)
    except EncodingError:
        return None


def _class_name(layer: Any) -> str:
    return type(layer).__name__


def build_tree(api: KerasApi, records: Mapping[str, Any], decoder: Decoder, walk: Callable[[], ModelTree]) -> ModelTree:
    """Name and build every layer of a freshly constructed model as it was recorded; returns the tree as built.

    A layer with a ``build`` of its own is built with the recorded arguments, and the tree walked again if that made
    new layers; a layer without one is marked built once everything below it is.
    """
    tree, done = walk(), set()
    with warnings.catch_warnings():
        # Keras warns of layers that are not built yet; everything is accounted for afterwards.
        warnings.filterwarnings("ignore", message=".*build.*", category=UserWarning)
        while pending := [path for path in tree.layers if path not in done]:
            # All of them before one is built: a layer may build those below it itself.
            for path in pending:
                if path in records:
                    _prepare_layer(api, tree.layers[path], records[path])
            for path in pending:
                done.add(path)
                if path in records and _build_layer(api, tree.layers[path], path, records[path], decoder):
                    break
            # Once for all layers that got nothing but variables: a walk after each of two thousand takes minutes.
            tree = walk()
        for path, layer in reversed(tree.layers.items()):
            if path in records and records[path]["built"] and not layer.built:
                _finish_default_build(api, layer, records[path], decoder)
    adapted = [path for path, layer in tree.layers.items() if "lora" in records.get(path, {}) and not api.lora(layer)]
    for path in adapted:
        api.enable_lora(tree.layers[path], **records[path]["lora"])
    return walk() if adapted else tree


def _prepare_layer(api: KerasApi, layer: Any, record: Mapping[str, Any]) -> None:
    if layer.name != record["name"]:
        # Automatic names count up through a process; variables are named after them.
        api.rename(layer, record["name"])
    if not layer.built and api.dtype_policy(layer) != record["dtype_policy"]:
        api.set_dtype_policy(layer, record["dtype_policy"])


def _build_layer(api: KerasApi, layer: Any, path: str, record: Mapping[str, Any], decoder: Decoder) -> bool:
    """Build one layer; whether there may be new layers below it."""
    if not record["built"] or layer.built or api.has_default_build(layer) or _was_never_called(layer, record):
        return False
    before = len(vars(layer)), len(api.sublayers(layer))
    try:
        with api.name_scopes(record["scope"]):
            if "build_config" in record:
                layer.build_from_config(decoder.decode(record["build_config"]))
            else:
                layer.build(**(decoder.decode(record["build"]) or {}))
    except Exception as error:
        raise RebuildError(
            f"{path or 'model'}: {_class_name(layer)}.build raised {type(error).__name__} when it was called with the "
            f"recorded arguments {record['build']}: {error}"
        ) from error
    sublayers = len(api.sublayers(layer))
    return not api.is_own(layer) or (sublayers > 0 and before != (len(vars(layer)), sublayers))


def _was_never_called(layer: Any, record: Mapping[str, Any]) -> bool:
    """Whether the layer said that it is built without a call of its ``build``, which would need arguments."""
    parameters = inspect.signature(layer.build).parameters.values()
    needs = any(
        item.default is item.empty and item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        for item in parameters
    )
    return needs and record["build"] is None and "build_config" not in record


def _finish_default_build(api: KerasApi, layer: Any, record: Mapping[str, Any], decoder: Decoder) -> None:
    arguments = decoder.decode(record["build"])
    if arguments and api.has_default_build(layer) and set(arguments) == {"input_shape"}:
        with api.name_scopes(record["scope"]):
            layer.build(**arguments)
    api.mark_built(layer)


def mismatched_layers(
    records: Mapping[str, Any], tree: ModelTree, shapes: Mapping[str, tuple[int, ...]], shape_of: Callable[[Any], Any]
) -> tuple[str, ...]:
    """Paths of layers that were replaced after construction: of another class, or with variables of other shapes.

    Args:
        records: What ``capture_layers`` returned.
        tree: The rebuilt model's tree.
        shapes: Recorded shape of each variable by path.
        shape_of: The shape of a variable of the rebuilt model.
    """
    return tuple(
        path
        for path, layer in tree.layers.items()
        if path in records
        and records[path]["constructor"] is not None
        and (
            records[path]["class"] != _class_name(layer)
            or any(
                name in tree.variables and shape_of(tree.variables[name]) != shapes.get(name)
                for name in records[path]["variables"]
            )
        )
    )


def put_layers(records: Mapping[str, Any], tree: ModelTree, decoder: Decoder, paths: Iterable[str]) -> None:
    """Construct the layers at ``paths`` from their records and put them in their places in the tree.

    A path whose owner is not there is left out: it comes with another layer, or is found missing afterwards.
    """
    made: dict[str, Any] = {}

    def layer_at(path: str) -> Any:
        if path in tree.layers and path not in paths:
            return tree.layers[path]
        if path not in made:
            made[path] = decoder.constructed(records[path]["constructor"], layer_at)
        return made[path]

    for path in sorted(paths, key=lambda path: (path.count(".") + path.count("["), path)):
        place = tree.place(path)
        if place is not None and records[path]["constructor"] is not None:
            place.replace(layer_at(path))


def compare_layers(records: Mapping[str, Any], tree: ModelTree) -> None:
    """Raise ``RebuildError`` unless the tree has exactly the recorded layers, of the recorded classes."""
    missing = {
        path: f"{path} ({records[path]['class']} {records[path]['name']!r})"
        for path in sorted(records.keys() - tree.layers.keys())
    }
    extra = {path: f"{path} ({_class_name(tree.layers[path])})" for path in sorted(tree.layers.keys() - records.keys())}
    changed = {
        path: f"{path or 'model'} is a {_class_name(layer)}, was a {records[path]['class']}"
        for path, layer in tree.layers.items()
        if path in records and records[path]["class"] != _class_name(layer)
    }
    if missing or extra or changed:
        raise RebuildError(
            "The rebuilt model does not have the layers of the one that was logged; "
            f"missing: {_listed(missing.values())}; extra: {_listed(extra.values())}; "
            f"changed: {_listed(changed.values())}. "
            "The constructor must make the same layers from the same arguments; a layer added from outside must become "
            "an argument.",
            paths=[*missing, *extra, *changed],
        )


def _listed(items: Collection[str]) -> str:
    shown = ", ".join(item or "model" for item in list(items)[:8]) or "none"
    return shown if len(items) <= 8 else f"{shown} and {len(items) - 8} more"


def set_trainable(records: Mapping[str, Any], tree: ModelTree, variables: Mapping[str, bool]) -> None:
    """Freeze and unfreeze layers and variables as recorded."""
    for path, layer in tree.layers.items():
        if path in records and bool(layer.trainable) != records[path]["trainable"]:
            # Setting it reaches everything below: outer layers come first.
            layer.trainable = records[path]["trainable"]
    for path, trainable in variables.items():
        variable = tree.variables.get(path)
        if variable is not None and hasattr(variable, "_trainable") and bool(variable.trainable) != trainable:
            # Only Keras variables can be set; those of TensorFlow are fixed by their constructor.
            with contextlib.suppress(AttributeError):
                variable.trainable = trainable


def add_unreachable(
    api: KerasApi, records: Mapping[str, Any], tree: ModelTree, specs: Mapping[str, tuple[tuple[int, ...], str, bool]]
) -> bool:
    """Make the variables that a layer lists and no attribute leads to, at their places among the layer's own.

    A ``build`` that failed and ran again leaves them, as it does under Keras' symbolic call of a layer that makes
    a ``keras.Variable``.

    Args:
        api: The seam to Keras.
        records: The recorded layers.
        tree: The rebuilt model's tree.
        specs: Shape, dtype and whether it is trainable, of each variable.

    Returns:
        Whether there were any.
    """
    found = False
    for path, layer in tree.layers.items():
        names = records.get(path, {}).get("variables", [])
        missing = {name for name in names if name not in tree.variables and is_unreachable(path, name)} & specs.keys()
        if missing:
            made = {name: api.add_variable(layer, *specs[name]) for name in names if name in missing}
            api.order_variables(layer, [made.get(name, tree.variables.get(name)) for name in names])
            found = True
    return found


def restore_order(api: KerasApi, records: Mapping[str, Any], tree: ModelTree) -> None:
    """Give each layer's variables and sublayers their recorded order, which ``model.variables`` follows.

    A layer that was quantized, frozen or added to after it was built lists them in another order than one built so.
    """
    paths, layer_paths = tree.variable_paths(), tree.layer_paths()
    for path, layer in tree.layers.items():
        record = records.get(path)
        if record is None:
            continue
        if _paths(api.own_variables(layer), paths) != record["variables"]:
            api.order_variables(layer, [tree.variables.get(name) for name in record["variables"]])
        if _paths(api.sublayers(layer), layer_paths) != record["layers"]:
            api.order_sublayers(layer, [tree.layers.get(name) for name in record["layers"]])


# --- attributes


def capture_attributes(tree: ModelTree, encoder: Encoder) -> dict[str, Any]:
    """Every value without state by path: its data form, or ``{"$type": …}`` where it has none."""
    return {path: capture_attribute(path, item.value, encoder) for path, item in tree.attributes.items()}


def capture_attribute(path: str, value: Any, encoder: Encoder) -> Any:
    """One value of ``capture_attributes``."""
    try:
        return encoder.encode_alone(value, f"attribute {path}")
    except EncodingError:
        kind = {"$type": f"{type(value).__module__}.{type(value).__qualname__}"}
        code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
        return kind if code is None else kind | {"code": hashlib.sha256(repr(_code_content(code)).encode()).hexdigest()}


def _code_content(code: types.CodeType) -> tuple[Any, ...]:
    """What a function does, without where it was written."""
    constants = tuple(_code_content(item) if isinstance(item, types.CodeType) else item for item in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants


def restore_attributes(
    recorded: Mapping[str, Any],
    tree: ModelTree,
    decoder: Decoder,
    *,
    current: Callable[[str, Any], Any],
    recorded_as: Callable[[Any], Any],
) -> None:
    """Give every attribute that differs from the recorded one its recorded value.

    Args:
        recorded: What ``capture_attributes`` returned.
        tree: The rebuilt model's tree.
        decoder: Of the artifact.
        current: The encoding of a rebuilt value at a path, with arrays named by their content.
        recorded_as: The same for a recorded encoding.

    Raises:
        RebuildError: An attribute differs and cannot be set.
    """
    for path in _differing(recorded, tree, current, recorded_as):
        attribute, value = tree.attributes.get(path), recorded[path]
        try:
            _placed(path, attribute or tree.place(path)).replace(decoder.decode(value))
        except (TypeError, AttributeError, KeyError, IndexError, FormatError) as error:
            raise RebuildError(
                f"{path}: the attribute was changed after construction and cannot be set on the rebuilt model: {error}"
            ) from error


def compare_attributes(
    recorded: Mapping[str, Any],
    tree: ModelTree,
    *,
    current: Callable[[str, Any], Any],
    recorded_as: Callable[[Any], Any],
) -> list[str]:
    """Compare every attribute with its recorded value, in the Python version that recorded it.

    Arguments are as in ``restore_attributes``. Returns the paths of values without data form that the rebuilt model
    does not have, or has as something else: what was put on the model afterwards, a file writer or a history say.

    Raises:
        RebuildError: An attribute has another value, or is a function that does something else.
    """
    differing = _differing(recorded, tree, current, recorded_as)
    not_stored = []
    for path, value in recorded.items():
        if not _is_opaque(value):
            continue
        attribute = tree.attributes.get(path)
        now = None if attribute is None else current(path, attribute.value)
        if "code" in value and now != value:
            differing.append(path)
        elif (now is None or not _is_opaque(now) or now["$type"] != value["$type"]) and not _is_of_keras(value):
            not_stored.append(path)
    if differing:
        raise RebuildError(
            f"These attributes of the rebuilt model differ from the recorded ones: {_listed(differing)}. Set them in "
            "the constructor from its arguments; a function that is put on the model afterwards must be a named one.",
            paths=differing,
        )
    return not_stored


def _is_of_keras(value: Mapping[str, Any]) -> bool:
    """Whether Keras put it there: the history of the last fit, which a rebuilt model was not part of."""
    return str(value["$type"]).startswith(("keras.", "tf_keras."))


def _is_opaque(value: Any) -> bool:
    return isinstance(value, dict) and "$type" in value


def _is_backend(value: Any) -> bool:
    """Whether it is Keras' handle of the backend, which is another one on another backend, and has no form as data."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("$keras"), dict)
        and (value["$keras"].get("class_name") == "DynamicBackend")
    )


def _differing(
    recorded: Mapping[str, Any],
    tree: ModelTree,
    current: Callable[[str, Any], Any],
    recorded_as: Callable[[Any], Any],
) -> list[str]:
    found = []
    for path, value in recorded.items():
        if _is_opaque(value) or _is_backend(value):
            continue
        attribute = tree.attributes.get(path)
        if attribute is None or not _same(current(path, attribute.value), recorded_as(value)):
            found.append(path)
    return found


def _placed(path: str, attribute: Attribute | None) -> Attribute:
    if attribute is None:
        raise KeyError(f"what holds {path} is not in the rebuilt model")
    return attribute


def _same(now: Any, recorded: Any, *, of_keras: bool = False) -> bool:
    """Whether two encodings mean the same: without the counters of automatic names, and of which object came first.

    A configuration of Keras' own, ``of_keras``, may lack keys that another release has, and hold tuples, which JSON
    makes lists.
    """
    if isinstance(recorded, dict) and isinstance(now, dict):
        of_keras = of_keras or "$keras" in recorded
        missing = [recorded[key] for key in recorded.keys() - now.keys() if key != "$id"]
        extra = [key for key in now.keys() - recorded.keys() if key != "$id"]
        if (extra and not of_keras) or any(not of_keras or item is not None for item in missing):
            return False
        shared = (recorded.keys() & now.keys()) - {"$id"}
        return all(_same(*_named(key, now[key], recorded[key]), of_keras=of_keras) for key in shared)
    if isinstance(recorded, list | tuple) and isinstance(now, list | tuple):
        pairs = zip(now, recorded, strict=False)
        return len(now) == len(recorded) and all(_same(*pair, of_keras=of_keras) for pair in pairs)
    return bool(now == recorded)


def _named(key: str, *values: Any) -> tuple[Any, ...]:
    """The values of a key, names without the number that Keras counts up through a process."""
    if key != "name":
        return values
    return tuple(_AUTOMATIC_NUMBER.sub("", item) if isinstance(item, str) else item for item in values)
