"""``config.json``: the model's class, how to construct it, what it takes and returns, and how it was compiled.

Imports errors, manifest, model_tree, recorder, specs, keras_api and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.errors import CaptureError, FormatError, RebuildError
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.model_tree import GLOBALS
from mlflow_keras_subclass.specs import InputSpec, Structure, structure_from_json, structure_to_json
from mlflow_keras_subclass.values import Decoder, Encoder, EncodingError, own_config

__all__ = [
    "capture_compile",
    "capture_constructor",
    "capture_globals",
    "compile_model",
    "construct",
    "read_specs",
    "restore_globals",
    "specs_to_json",
    "unknown_arguments",
]


def capture_constructor(
    api: KerasApi, model: Any, encoder: Encoder, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How to construct ``model`` again, as JSON.

    In this order: ``config`` as the caller states it; the ``get_config`` of the exact class (an inherited one lacks
    the child's arguments), if it covers the recorded arguments; the arguments recorded when the model was built; for a
    model built before the recorder was there, the attributes named like the arguments. The last are a guess, marked
    ``inferred``: whoever calls this must have it proven.

    Keras' automatic config of a Model subclass is never used: Keras 3.0 to 3.15.1 puts the defaults in it.

    Raises:
        CaptureError: None of these is there, or a value in it cannot be stored; the text shows ``config=`` to pass.
    """
    kind = type(model)
    if api.is_functional(model) or api.is_sequential(model):
        return {"source": "keras", "value": encoder.encode(model, "model")}
    definition = encoder.definition(kind)
    if config is not None:
        _check_binds(kind, config)
        return {"source": "config", "definition": definition, "config": encoder.encode(dict(config), "config")}
    arguments = recorder.constructor_arguments(model)
    own = own_config(api, model, arguments)
    if own is not None:
        return {"source": "get_config", "definition": definition, "config": encoder.encode(own, "get_config()")}
    if arguments is None:
        inferred = _inferred(model)
        return {
            "source": "config",
            "inferred": True,
            "definition": definition,
            "config": encoder.encode(inferred, "argument"),
        }
    return {"source": "arguments", "definition": definition, **encoder.encode_arguments(model, "argument")}


def _check_binds(kind: type, config: Mapping[str, Any]) -> None:
    signature = inspect.signature(kind.__init__)  # type: ignore[misc] # the constructor of this class is meant
    try:
        signature.bind(None, **config)
    except TypeError as error:
        raise CaptureError(
            f"config: does not fit {kind.__qualname__}{_shown(signature)}: {error}. Pass one entry for each argument."
        ) from None


def _inferred(model: Any) -> dict[str, Any]:
    """The constructor's arguments from attributes of the same names; an argument left out has its default."""
    kind, found = type(model), {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:  # type: ignore[misc]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        attribute = next((item for item in (name, f"_{name}") if item in vars(model)), None)
        if attribute is not None and parameter.kind is not parameter.POSITIONAL_ONLY:
            found[name] = vars(model)[attribute]
        elif parameter.default is parameter.empty:
            raise CaptureError(unknown_arguments(kind))
    return found


def unknown_arguments(kind: type) -> str:
    """The refusal for a model whose constructor's arguments are not known, with the ``config=`` to pass."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    names = [
        name
        for name, parameter in list(signature.parameters.items())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    example = ", ".join(f'"{name}": …' for name in names)
    return (
        f"model: the arguments that {kind.__qualname__}{_shown(signature)} was constructed with are not known: it was "
        "built before mlflow_keras_subclass was imported, and it has no get_config of its own. Import "
        f"mlflow_keras_subclass before the model is built, or pass config={{{example}}}."
    )


def _shown(signature: inspect.Signature) -> str:
    return str(signature.replace(parameters=list(signature.parameters.values())[1:]))


def construct(api: KerasApi, constructor: Mapping[str, Any], decoder: Decoder) -> Any:
    """The model, constructed again and not yet built; the inverse of ``capture_constructor``.

    Raises:
        RebuildError: The constructor raised.
        FormatError: ``constructor`` does not have the promised form.
    """
    match constructor:
        case {"source": "keras", "value": value}:
            return decoder.decode(value)
        case {"source": "config", "definition": key, "config": config}:
            return _called(decoder.definition(key), (), decoder.decode(config))
        case {"source": "get_config", "definition": key, "config": config}:
            return _called(decoder.definition(key).from_config, (decoder.decode(config),), {})
        case {"source": "arguments", "definition": key, "args": list(), "kwargs": dict()}:
            args, kwargs = decoder.arguments(constructor)
            return _called(decoder.definition(key), tuple(args), kwargs)
    raise FormatError(f"config.json: constructor: unknown form {constructor!r:.200}.")


def _called(constructor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return constructor(*args, **kwargs)
    except Exception as error:
        raise RebuildError(
            f"{getattr(constructor, '__qualname__', constructor)} raised {type(error).__name__} when it was called "
            f"with the stored arguments: {error}"
        ) from error


def capture_compile(api: KerasApi, model: Any, encoder: Encoder) -> dict[str, Any] | None:
    """The arguments of ``compile()`` as JSON, or ``None`` if the model is not compiled."""
    if not api.is_compiled(model):
        return None
    arguments = recorder.compile_arguments(model)
    if arguments is None:
        arguments = recorder.Arguments(args=(), kwargs=_keras_compile_config(api, model))
    return {
        "args": [encoder.encode(item, f"compile({number})") for number, item in enumerate(arguments.args)],
        "kwargs": {key: encoder.encode(item, f"compile({key})") for key, item in arguments.kwargs.items()},
    }


def _keras_compile_config(api: KerasApi, model: Any) -> dict[str, Any]:
    if api.overrides_compile(type(model)):
        raise EncodingError(
            "compile()",
            f"{type(model).__qualname__} overrides compile, and was compiled before mlflow_keras_subclass was "
            "imported, so that its arguments are not known. Import it first, or compile the model again",
        )
    return {key: item for key, item in api.compile_config(model).items() if item is not None}


def compile_model(model: Any, compiled: Mapping[str, Any] | None, decoder: Decoder) -> None:
    """Compile ``model`` as it was; the inverse of ``capture_compile``."""
    if compiled is None:
        return
    args = tuple(decoder.decode(item) for item in compiled["args"])
    _called(model.compile, args, {key: decoder.decode(item) for key, item in compiled["kwargs"].items()})


def capture_globals(model: Any, values: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """What the code of ``model`` reads from global variables, by name; ``None`` stands for the model itself.

    Raises:
        CaptureError: One of them cannot be made again.
    """
    return {
        name: None if value is model else encoder.encode(value, f"{GLOBALS}[{name!r}]")
        for name, value in values.items()
    }


def restore_globals(values: Mapping[str, Any], decoder: Decoder, put: Callable[[str, Any], None]) -> dict[str, Any]:
    """Make the values of ``capture_globals`` again, but for the model itself; each is ``put`` in its places at once.

    One may need another: what cannot be made yet is tried again after the others.

    Raises:
        RebuildError: One cannot be made.
    """
    made: dict[str, Any] = {}
    waiting = [name for name, value in values.items() if value is not None]
    while waiting:
        failures: dict[str, Exception] = {}
        for name in waiting:
            try:
                made[name] = decoder.decode(values[name])
            except Exception as error:  # The user's constructor runs here.
                failures[name] = error
            else:
                put(name, made[name])
        if len(failures) == len(waiting):
            name, first = next(iter(failures.items()))
            raise RebuildError(
                f"{name}: what the model's code reads from this variable could not be made again: "
                f"{type(first).__name__}: {first}"
            ) from first
        waiting = list(failures)
    return made


def specs_to_json(inputs: InputSpec | None, outputs: Structure | None) -> dict[str, Any]:
    """Input and output spec as the keys of ``config.json``."""
    return {
        "input_spec": None if inputs is None else inputs.to_json(),
        "output_spec": None if outputs is None else structure_to_json(outputs),
    }


def read_specs(config: Mapping[str, Any]) -> tuple[InputSpec | None, Structure | None]:
    """The inverse of ``specs_to_json``."""
    inputs, outputs = config.get("input_spec"), config.get("output_spec")
    return (
        None if inputs is None else InputSpec.from_json(inputs),
        None if outputs is None else structure_from_json(outputs),
    )
