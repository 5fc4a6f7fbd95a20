"""Notes how models are constructed, compiled and called, while the user's code runs; imports no Keras itself.

``arm()`` leaves a hook that instruments Keras once it is imported (or at once if it is). The instruments only take
notes: they change no argument, result or exception, and put nothing on the instance, because Keras' saver walks every
attribute. Notes are kept by identity with weak keys: a class may be unhashable or call all instances equal.

Why notes are needed: ``keras.Model.__new__`` (3.0 to 3.15.1) hides the constructor's arguments from Keras' own
bookkeeping, so that the config it derives for a subclass holds the defaults instead of the values passed.

Module state: the three note books below. One recorder for every Keras of the process.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import itertools
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import wrapt

from mlflow_keras_subclass.lookup import has_attribute
from mlflow_keras_subclass.specs import InputSpec, observe_call
from mlflow_keras_subclass.weak_notes import WeakNotes

__all__ = [
    "RECORDER_VARIABLE",
    "Arguments",
    "arm",
    "compile_arguments",
    "constructor_arguments",
    "observed_input_spec",
]

RECORDER_VARIABLE = "MLFLOW_KERAS_SUBCLASS_RECORDER"

# Arrays up to this size are copied, so that a constructor that changes its argument in place does not change the note.
_COPIED_ARRAY_BYTES = 2**20
# What most arguments are: nothing has to be looked up on them, each time that a layer is made.
_PLAIN = (str, bool, int, float, types.NoneType)

_INSTRUMENTED = "_mlflow_keras_subclass_instrumented"


@dataclass(frozen=True, slots=True)
class Arguments:
    """The positional and keyword arguments of one call, as the caller passed them."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


_CONSTRUCTED: WeakNotes[Arguments] = WeakNotes()
_COMPILED: WeakNotes[Arguments] = WeakNotes()
_CALLED: WeakNotes[InputSpec] = WeakNotes()


def arm() -> None:
    """Instrument Keras when it is imported, once; nothing happens if the environment variable says ``off``."""
    if os.environ.get(RECORDER_VARIABLE, "on").lower() in ("off", "0", "false"):
        return
    # "keras.src.models.model" would fire before keras.Model has its final bases; the package's own end does not.
    for name in ("keras", "tf_keras"):
        wrapt.register_post_import_hook(_instrument, name)


def constructor_arguments(instance: Any) -> Arguments | None:
    """The arguments that ``instance`` (a Keras layer or model) was constructed with, or ``None`` if not seen.

    Containers are copies made before the constructor ran. An argument that was the object under construction itself
    is held weakly; one that is gone makes the whole note ``None``.
    """
    note = _CONSTRUCTED.get(instance)
    if note is None:
        return None
    try:
        return Arguments(args=_released(note.args), kwargs=_released(dict(note.kwargs)))
    except ReferenceError:
        return None


def compile_arguments(model: Any) -> Arguments | None:
    """The arguments of the last ``compile()`` call, of the outermost override where the class overrides it."""
    return _COMPILED.get(model)


def observed_input_spec(model: Any) -> InputSpec | None:
    """How ``model`` was called so far; dimensions that varied between calls are open."""
    return _CALLED.get(model)


def _instrument(keras: types.ModuleType) -> None:
    layer, model = keras.layers.Layer, keras.Model
    if hasattr(layer.__new__, _INSTRUMENTED):
        return
    for base in _constructed_bases(keras):
        _replace(base, "__new__", _noting_new, static=True)
    # Private: the one place that sees a call's arguments bound to names, converted, and inside Keras, where no
    # frame of ours shows in a user's traceback or is converted by autograph. A test notices when it moves.
    if keras.__name__ == "tf_keras":
        _replace(layer, "_get_input_masks", functools.partial(_noting_legacy_call, model))
    elif hasattr(layer, "_maybe_build"):
        _replace(layer, "_maybe_build", functools.partial(_noting_call, model))
    for base in model.__mro__:
        if "compile" in vars(base):
            _replace(base, "compile", _noting_compile)
            break


def _constructed_bases(keras: types.ModuleType) -> list[type]:
    """Keras' own classes that users derive from; most outer last, since these ``__new__`` call each other."""
    return [
        keras.layers.Layer,
        keras.Model,
        keras.Sequential,
        keras.metrics.Metric,
        keras.losses.Loss,
        keras.optimizers.Optimizer,
        keras.optimizers.schedules.LearningRateSchedule,
        keras.initializers.Initializer,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
        *([keras.optimizers.legacy.Optimizer] if keras.__name__ == "tf_keras" else []),
    ]


def _replace(owner: type, name: str, instrument: Callable[[Callable[..., Any]], Any], *, static: bool = False) -> None:
    original = getattr(owner, name)
    noting = functools.wraps(original)(instrument(original))
    setattr(noting, _INSTRUMENTED, True)
    setattr(owner, name, staticmethod(noting) if static else noting)


def _noting_new(original: Callable[..., Any]) -> Callable[..., Any]:
    # Model.__new__ calls Layer.__new__ without the arguments: the outermost call ends last, so its note stays.
    takes_arguments = original is not object.__new__

    def noting_new(cls: type, *args: Any, **kwargs: Any) -> Any:
        args_passed, kwargs_passed = _outermost_new(cls, sys._getframe(1)) or (args, kwargs)
        held = None
        # The user's constructor must not fail because notes of it cannot be taken.
        with contextlib.suppress(Exception):
            held = Arguments(args=_held(args_passed), kwargs=_held(kwargs_passed))
        instance = original(cls, *args, **kwargs) if takes_arguments else original(cls)
        if held is not None:
            _CONSTRUCTED.put(instance, held)
        return instance

    return noting_new


def _outermost_new(cls: type, frame: types.FrameType | None) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of the user's own ``__new__`` that called Keras', perhaps without them, read from its frame."""
    found = None
    while frame is not None and frame.f_code.co_name == "__new__" and frame.f_code.co_argcount:
        if frame.f_locals.get(frame.f_code.co_varnames[0]) is not cls:
            break
        arguments = _frame_arguments(frame)
        found = arguments.args, dict(arguments.kwargs)
        frame = frame.f_back
    return found


def _noting_call(model: type, original: Callable[..., Any]) -> Callable[..., Any]:
    def _maybe_build(self: Any, call_spec: Any) -> Any:
        if isinstance(self, model):
            # The user's call must not fail because notes of it cannot be taken.
            with contextlib.suppress(Exception):
                _note_call(self, call_spec)
        return original(self, call_spec)

    return _maybe_build


def _noting_legacy_call(model: type, original: Callable[..., Any]) -> Callable[..., Any]:
    def _get_input_masks(self: Any, inputs: Any, input_list: Any, args: Any, kwargs: Any) -> Any:
        if issubclass(type(self), model):
            _note(self, [inputs, *args], kwargs, _positional(inspect.signature(self.call).parameters.values()))
        return original(self, inputs, input_list, args, kwargs)

    return _get_input_masks


def _note_call(model: Any, call_spec: Any) -> None:
    parameters = inspect.signature(model.call).parameters.values()
    names = _positional(parameters)
    args, kwargs = _as_passed(dict(call_spec.user_arguments_dict), names, parameters)
    _note(model, args, kwargs, names)


def _positional(parameters: Iterable[inspect.Parameter]) -> list[str]:
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _note(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], names: list[str]) -> None:
    spec = observe_call(args, kwargs, names, "float32")
    known = _CALLED.get(model)
    _CALLED.put(model, spec if known is None else known.generalized(spec))


def _as_passed(
    given: dict[str, Any], names: list[str], parameters: Iterable[inspect.Parameter]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments from the bound ones: positional up to the first that was left out."""
    args = [given.pop(name) for name in itertools.takewhile(given.__contains__, names)]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(given.pop(parameter.name, ()))
        elif parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(parameter.name, {}))
    return args, given


def _noting_compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _COMPILED.put(self, _outermost_compile(self, sys._getframe(1)) or Arguments(args=args, kwargs=kwargs))
        return result

    return compile


def _outermost_compile(model: Any, frame: types.FrameType | None) -> Arguments | None:
    """The arguments of the user's own ``compile`` that called Keras', read from its frame."""
    found = None
    while frame is not None and frame.f_code.co_name == "compile" and frame.f_code.co_argcount:
        if frame.f_locals.get(frame.f_code.co_varnames[0]) is not model:
            break
        found = _frame_arguments(frame)
        frame = frame.f_back
    return found


def _frame_arguments(frame: types.FrameType) -> Arguments:
    code, local = frame.f_code, frame.f_locals
    names = list(code.co_varnames)
    positional = names[1 : code.co_argcount]
    kwonly = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    rest = iter(names[code.co_argcount + code.co_kwonlyargcount :])
    varargs = local.get(next(rest), ()) if code.co_flags & 0x04 else ()
    varkw = local.get(next(rest), {}) if code.co_flags & 0x08 else {}
    by_position = len(positional) if varargs else max(code.co_posonlyargcount - 1, 0)
    args = (*(local[name] for name in positional[:by_position]), *varargs)
    return Arguments(args, {**{name: local[name] for name in (*positional[by_position:], *kwonly)}, **varkw})


@dataclass(frozen=True, slots=True)
class _Weak:
    """Stands in a note for an argument that was under construction: holding it would keep it alive for ever."""

    reference: weakref.ref[Any]


def _held(value: Any) -> Any:
    """``value`` with its containers and small arrays copied, to be kept in a note."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (dict, collections.OrderedDict):
        return kind((key, _held(item)) for key, item in value.items())
    if kind is collections.defaultdict:
        return collections.defaultdict(value.default_factory, {key: _held(item) for key, item in value.items()})
    if kind in (list, tuple, set, frozenset, collections.deque):
        return kind(_held(item) for item in value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.nbytes <= _COPIED_ARRAY_BYTES:
        return value.copy()
    is_layer = has_attribute(value, "_tracker") or has_attribute(value, "_self_tracked_trackables")
    if is_layer and _under_construction(value):
        return _Weak(weakref.ref(value))
    return value


def _under_construction(layer: Any) -> bool:
    """Whether a method of ``layer`` is running, as when a parent passes itself to a child that it makes."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_filename != __file__ and frame.f_locals.get(code.co_varnames[0]) is layer:
            return True
        frame = frame.f_back
    return False


def _released(value: Any) -> Any:
    if isinstance(value, _Weak):
        target = value.reference()
        if target is None:
            raise ReferenceError
        return target
    kind = type(value)
    if kind in (dict, collections.OrderedDict):
        return kind((key, _released(item)) for key, item in value.items())
    if kind in (list, tuple):
        return kind(_released(item) for item in value)
    return value
