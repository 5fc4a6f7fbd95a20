"""The compiled call of a model, for each backend: arrays in, arrays out, traced once, safe to call from threads.

Part of the seam. ``model.predict`` is not used unless the class overrides it: it builds a data pipeline for every
call, which costs a small request a hundred times the model's own time.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_keras_subclass.specs import ArraySpec, InputSpec

if TYPE_CHECKING:
    from mlflow_keras_subclass.keras_api.common import KerasApi

__all__ = ["Call", "as_array", "compiled", "has_own_predict", "model_call", "stateless"]

_logger = logging.getLogger(__name__)

Call = Callable[[Sequence[Any], Mapping[str, Any]], Any]


def compiled(
    api: KerasApi,
    model: Any,
    input_spec: InputSpec | None,
    *,
    device: str | None,
    jit_compile: bool,
    method: str = "call",
) -> Call:
    """See ``KerasApi.compiled``."""
    if method != "call":
        return _named(api, getattr(model, method), device)
    if has_own_predict(api, model):
        return _serialised(api, _quiet(api.keras.utils, model), device)
    call = model_call(api, model)
    if input_spec is not None and not getattr(model, "run_eagerly", False):
        if api.backend == "tensorflow":
            return _tensorflow(api, call, input_spec, device=device, jit_compile=jit_compile)
        if api.backend == "jax":
            return _jax(api, model, call, input_spec, device)
    return _eager(api, call, device)


def has_own_predict(api: KerasApi, model: Any) -> bool:
    """Whether the class overrides ``predict``, which is Python and no graph."""
    return type(model).predict is not api.keras.Model.predict


def model_call(api: KerasApi, model: Any) -> Call:
    """What Keras' own ``predict`` does with one batch: a function of tensors that can be traced."""
    if type(model).predict_step is api.keras.Model.predict_step:
        return _plain(api, model)
    return _stateless_step(model) if api.backend == "jax" and _takes_state(model) else _step(model)


def _named(api: KerasApi, method: Any, device: str | None) -> Call:
    # Not traced here: Python in it that is no graph would be frozen. A tf.function of the user's compiles itself.
    function = getattr(method, "python_function", method)
    fixed = {"training": False} if "training" in inspect.signature(function).parameters else {}
    return _eager(api, lambda args, kwargs: method(*args, **kwargs, **fixed), device)


def _quiet(utils: Any, model: Any) -> Call:
    """The user's ``predict`` without the progress bar that Keras' own draws for every request; not all take verbose."""

    def predict(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not utils.is_interactive_logging_enabled():
            return model.predict(*args, **kwargs)
        utils.disable_interactive_logging()  # a setting of this thread
        try:
            return model.predict(*args, **kwargs)
        finally:
            utils.enable_interactive_logging()

    return predict


def _plain(api: KerasApi, model: Any) -> Call:
    takes_training = api.takes_training(model)
    return lambda args, kwargs: model(*args, **kwargs, training=False) if takes_training else model(*args, **kwargs)


def _step(model: Any) -> Call:
    # predict_step receives what the data adapter yields: a tuple of which x is the first.
    def step(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return model.predict_step((args[0],) if len(args) == 1 and not kwargs else (tuple(args),))

    return step


def _stateless_step(model: Any) -> Call:
    # With JAX, Keras hands predict_step the state and expects the new one.
    def step(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        state = [[variable.value for variable in group] for group in _groups(model)]
        outputs, changed = model.predict_step(state, (args[0],) if len(args) == 1 and not kwargs else (tuple(args),))
        for variable, value in zip(model.non_trainable_variables, changed, strict=True):
            variable.assign(value)
        return outputs

    return step


def _takes_state(model: Any) -> bool:
    return len(inspect.signature(model.predict_step).parameters) > 1


def _tensorflow(api: KerasApi, call: Call, spec: InputSpec, *, device: str | None, jit_compile: bool) -> Call:
    tf = importlib.import_module("tensorflow")
    leaves = spec.leaves()
    names = list(leaves)

    def flat(*tensors: Any) -> Any:
        args, kwargs = spec.bind(dict(zip(names, tensors, strict=True)))
        return call(args, kwargs)

    signature = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves.values()]
    # Keras runs a plain `call` without autograph, and so must this. The user's own tf.functions keep theirs.
    function = tf.function(flat, input_signature=signature, autograph=False, jit_compile=jit_compile or None)
    try:
        with api.device(device):
            traced = function.get_concrete_function()
    except Exception as error:
        # A call that needs Python values or a fixed batch cannot be traced; run as its author ran it.
        _logger.warning("The call cannot be compiled with an open batch dimension and runs eagerly: %s", error)
        return _eager(api, call, device)

    dtypes = [tf.as_dtype(leaf.dtype) for leaf in leaves.values()]

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # A small model's call is a quarter of a millisecond: what does not depend on the arrays is done above.
        bare = names == [None] and len(args) == 1 and not kwargs
        values = args if bare else spec.flatten(args, kwargs).values()
        with api.device(device):
            tensors = [tf.constant(value, dtype) for value, dtype in zip(values, dtypes, strict=True)]
            outputs = traced(*tensors)
            return as_array(outputs, api.value) if tf.is_tensor(outputs) else _to_numpy(api, outputs)

    return run


def _jax(api: KerasApi, model: Any, call: Call, spec: InputSpec, device: str | None) -> Call:
    jax = importlib.import_module("jax")
    variables = list(model.variables)
    function = stateless(api, call, variables)
    jitted = jax.jit(function)

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with api.device(device):
            values = [variable.value for variable in variables]
            outputs, changed = jitted(values, tuple(args), dict(kwargs))
            for number, value in changed.items():
                variables[number].assign(value)
            return _to_numpy(api, outputs)

    try:
        args, kwargs = spec.map(_placeholder)
        with api.device(device):
            jax.eval_shape(function, [variable.value for variable in variables], args, kwargs)
    except Exception as error:
        # A call that needs Python values cannot be traced; run as its author ran it.
        _logger.warning("The call cannot be compiled and runs eagerly: %s", error)
        return _eager(api, call, device)
    return run


def stateless(api: KerasApi, call: Call, variables: Sequence[Any]) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """``call`` as a function of the values of ``variables`` too, which also returns those that it changed, by place."""

    def function(values: Any, args: Any, kwargs: Any) -> Any:
        scope = api.keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
        with scope:
            outputs = call(args, kwargs)
        now = [scope.get_current_value(variable) for variable in variables]
        changed = {n: new for n, (new, old) in enumerate(zip(now, values, strict=True)) if new is not old}
        return outputs, changed

    return function


def _placeholder(leaf: ArraySpec) -> np.ndarray[Any, Any]:
    return np.zeros(leaf.example_shape(2), leaf.dtype)


def _groups(model: Any) -> tuple[list[Any], list[Any]]:
    return model.trainable_variables, model.non_trainable_variables


def _eager(api: KerasApi, call: Call, device: str | None) -> Call:
    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with api.device(device), _no_gradients(api.backend):
            tensors = api.map_structure(api.tensor, (tuple(args), dict(kwargs)))
            return _to_numpy(api, call(*tensors))

    return run


def _serialised(api: KerasApi, call: Call, device: str | None) -> Call:
    # Keras' predict keeps state on the model while it runs.
    lock = threading.Lock()

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with lock, api.device(device):
            return _to_numpy(api, call(args, kwargs))

    return run


def _no_gradients(backend: str) -> Any:
    import contextlib

    return importlib.import_module("torch").no_grad() if backend == "torch" else contextlib.nullcontext()


def _to_numpy(api: KerasApi, outputs: Any) -> Any:
    return api.map_structure(lambda value: as_array(value, api.value), outputs)


def as_array(value: Any, to_numpy: Callable[[Any], Any]) -> Any:
    """One output as what is served: rows of unequal length and text as objects, ``bfloat16`` as ``float32``."""
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if hasattr(value, "to_list") and hasattr(value, "row_splits"):
        return np.array(value.to_list(), dtype=object)
    array = np.asarray(value if isinstance(value, np.ndarray) else to_numpy(value))
    if array.dtype == object:
        decode = np.vectorize(lambda item: item.decode("utf-8") if isinstance(item, bytes) else item, otypes=[object])
        return decode(array) if array.size else array
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
