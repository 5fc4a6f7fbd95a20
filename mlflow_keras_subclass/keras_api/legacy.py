"""tf_keras: Keras 2 as it lives on, with TensorFlow; ``tf.keras`` where ``TF_USE_LEGACY_KERAS=1``.

Private names of tf_keras used here (each held by the zoo of such models): ``Layer._trainable_weights``,
``_non_trainable_weights``, ``_flatten_layers``, ``_self_tracked_trackables``, ``_build_input_shape``, ``_name``,
``_set_dtype_policy``; ``Model._is_compiled``; ``Optimizer._index_dict``, ``_var_key``, ``_hyper``; the counters
behind automatic names, and the one function that makes a layer's variables. None has a public counterpart, and
tf_keras itself only gets repairs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mlflow_keras_subclass.keras_api.common import KerasApi, sort_like
from mlflow_keras_subclass.keras_api.construction import on_this_thread
from mlflow_keras_subclass.specs import ArraySpec, InputSpec

__all__ = ["LegacyApi"]

# What recurrent and adapted layers of Keras' own derive when they are built, and the function that adapted them.
_DERIVED = frozenset({"state_spec", "_adapt_function"})


class LegacyApi(KerasApi):
    """The seam to the package ``tf_keras``."""

    distribution = "tf_keras"

    @functools.cached_property
    def _tf(self) -> Any:
        return importlib.import_module("tensorflow")

    # --- what kind of thing an object is

    def is_layer(self, value: Any) -> bool:
        # A metric is a layer here, by inheritance only.
        return isinstance(value, self.keras.layers.Layer) and not self.is_metric(value)

    def is_optimizer(self, value: Any) -> bool:
        return isinstance(value, self.keras.optimizers.Optimizer | self.keras.optimizers.legacy.Optimizer)

    def is_variable(self, value: Any) -> bool:
        return isinstance(value, self._tf.Variable)

    def is_seed_generator(self, value: Any) -> bool:
        return isinstance(value, self._tf.random.Generator)

    def is_tensor(self, value: Any) -> bool:
        if isinstance(value, dict):  # one whose keys are attributes raises, or has all that tensors are known by
            return False
        return self._tf.is_tensor(value) and not self.is_variable(value) and hasattr(value, "numpy")

    def is_symbolic(self, value: Any) -> bool:
        return isinstance(value, self._symbol_type)

    def is_open(self, kind: type) -> bool:
        # What draws a layer's random numbers holds the generator whose state is a variable.
        return super().is_open(kind) or (self.is_own_module(kind.__module__) and kind.__name__ == "RandomGenerator")

    @functools.cached_property
    def _symbol_type(self) -> type:
        with self.name_scope():
            return type(self.keras.Input((1,)))

    def batch_shape(self, input_layer: Any) -> tuple[int | None, ...]:
        return tuple(input_layer._batch_input_shape)

    # --- state

    def hidden_attributes(self, owner: Any) -> frozenset[str]:
        if not isinstance(owner, self.keras.layers.Layer):
            return frozenset()
        return self.internal_attributes | _DERIVED if self.is_own(owner) else self.internal_attributes

    @functools.cached_property
    def internal_attributes(self) -> frozenset[str]:
        """See ``KerasApi``."""
        with self.name_scope():
            return _internal_names(self.keras)

    def own_variables(self, layer: Any) -> list[Any]:
        return [*layer._trainable_weights, *layer._non_trainable_weights]

    def order_variables(self, layer: Any, variables: Sequence[Any]) -> None:
        for group in (layer._trainable_weights, layer._non_trainable_weights):
            sort_like(group, variables)

    def sublayers(self, layer: Any) -> list[Any]:
        return [item for item in layer._flatten_layers(include_self=False, recursive=False) if self.is_layer(item)]

    def order_sublayers(self, layer: Any, sublayers: Sequence[Any]) -> None:
        # Containers are tracked as such, and keep their places.
        if all(item in sublayers for item in layer._self_tracked_trackables):
            sort_like(layer._self_tracked_trackables, sublayers)

    def seed_generators(self, layer: Any) -> list[Any]:
        return []

    def value(self, variable: Any) -> np.ndarray[Any, Any]:
        if hasattr(variable, "to_tensor"):
            variable = variable.to_tensor()
        # A variable of mixed precision shows its stored value only outside of a call.
        return np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable)

    def tensor(self, value: Any) -> Any:
        value = np.asarray(value)
        return self._tf.constant(value.tolist() if value.dtype == object or value.dtype.kind in "US" else value)

    def assign(self, variable: Any, value: np.ndarray[Any, Any]) -> None:
        variable.assign(value)

    def shape_and_dtype(self, variable: Any) -> tuple[tuple[int, ...], str]:
        return tuple(int(size) for size in variable.shape), str(variable.dtype.base_dtype.name)

    def name_of(self, variable: Any) -> str:
        return str(variable.name)

    def optimizer_variables(self, optimizer: Any) -> list[Any]:
        found = optimizer.variables
        variables = list(found() if callable(found) else found)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        # Legacy optimizers keep the learning rate, which schedules change, outside of their weights.
        settings = [item for _, item in sorted(getattr(inner, "_hyper", {}).items()) if self.is_variable(item)]
        scale = [item for item in vars(getattr(optimizer, "_loss_scale", self)).values() if self.is_variable(item)]
        return [*variables, *self._unlisted(settings + scale, variables)]

    def _unlisted(self, items: Iterable[Any], listed: Iterable[Any]) -> list[Any]:
        known = {id(item) for item in listed}
        return [item for item in items if id(item) not in known]

    def trained_variables(self, optimizer: Any, candidates: Iterable[Any] = ()) -> list[Any]:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner, self.keras.optimizers.legacy.Optimizer):
            keys = [key for key in inner._slots]
            by_key = {_legacy_key(item): item for item in candidates}
            return [by_key[key] for key in keys if key in by_key]
        order = getattr(inner, "_index_dict", {})
        trained = [item for item in candidates if inner._var_key(item) in order]
        return sorted(trained, key=lambda item: order[inner._var_key(item)])

    def build_optimizer(self, optimizer: Any, variables: Sequence[Any]) -> None:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner, self.keras.optimizers.legacy.Optimizer):
            inner._create_all_weights(list(variables))
        else:
            inner.build(list(variables))

    # --- building

    def is_compiled(self, model: Any) -> bool:
        return bool(getattr(model, "_is_compiled", False))

    def rename(self, layer: Any, name: str) -> None:
        layer._name = name

    def scope(self, layer: Any) -> str:
        return ""

    def name_scopes(self, scope: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def name_scope(self) -> Iterator[None]:
        counters = importlib.import_module("tf_keras.src.backend").PER_GRAPH_OBJECT_NAME_UIDS
        saved = {graph: dict(names) for graph, names in counters.items()}
        try:
            yield
        finally:
            for graph, names in counters.items():
                names.clear()
                names.update(saved.get(graph, {}))

    def build_arguments(self, layer: Any) -> dict[str, Any] | None:
        shape = getattr(layer, "_build_input_shape", None)
        if shape is None or self.has_default_build(layer):
            return None
        parameters = list(inspect.signature(layer.build).parameters.values())
        named = parameters and parameters[0].kind is parameters[0].POSITIONAL_OR_KEYWORD
        return {parameters[0].name if named else "input_shape": shape}

    def unlocked(self, layers: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def lora(self, layer: Any) -> dict[str, Any] | None:
        return None

    def enable_lora(self, layer: Any, *, rank: int, alpha: float) -> None:
        raise NotImplementedError("tf_keras has no low-rank adapters")

    def dtype_policy(self, layer: Any) -> Any:
        return layer.dtype_policy.name

    def set_dtype_policy(self, layer: Any, recorded: Any) -> None:
        layer._set_dtype_policy(recorded)

    @contextlib.contextmanager
    def _zero_initialization(self) -> Iterator[None]:
        variables: Any = importlib.import_module("tf_keras.src.engine.base_layer_utils")
        original, zeros, drawn = variables.make_variable, self.keras.initializers.Zeros(), self._drawing_initializers()

        def make_variable(name: str, *args: Any, initializer: Any = None, **kwargs: Any) -> Any:
            is_random = isinstance(initializer, drawn) and self.is_own(initializer)
            return original(name, *args, initializer=zeros if is_random else initializer, **kwargs)

        variables.make_variable = on_this_thread(make_variable, original)
        try:
            yield
        finally:
            variables.make_variable = original

    def _global_policy(self) -> Any:
        return self.keras.mixed_precision.global_policy()

    def _set_global_policy(self, policy: Any) -> None:
        self.keras.mixed_precision.set_global_policy(policy)

    # --- running

    def flat(self, structure: Any) -> list[Any]:
        return list(self._tf.nest.flatten(structure))

    def map_structure(self, function: Callable[[Any], Any], structure: Any) -> Any:
        return self._tf.nest.map_structure(function, structure)

    def symbolic_outputs(self, model: Any, input_spec: InputSpec) -> Any:
        args, kwargs = input_spec.map(self._tensor_spec)
        return self._tf.function(model, autograph=False).get_concrete_function(*args, **kwargs).structured_outputs

    def _tensor_spec(self, spec: ArraySpec) -> Any:
        return self._tf.TensorSpec(spec.shape, spec.dtype)

    def device(self, name: str | None) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if name is None else self._tf.device(f"/{name.upper()}")

    def takes_training(self, model: Any) -> bool:
        return bool(model._expects_training_arg)


def _legacy_key(variable: Any) -> Any:
    # As tf_keras.src.optimizers.legacy.optimizer_v2._var_key, outside of a distribution strategy.
    return variable._unique_id


@functools.cache
def _internal_names(keras: Any) -> frozenset[str]:
    layer, called, compiled = keras.layers.Layer(), keras.layers.Layer(), keras.Model()
    called(np.zeros((1, 1)))
    compiled.compile(loss="mse", metrics=["mse"])
    inputs = keras.Input((1,))
    functional = keras.Model(inputs, keras.layers.Identity()(inputs))
    sequential = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    metric = keras.metrics.Metric.__new__(keras.metrics.Mean)
    keras.metrics.Metric.__init__(metric)
    names = {name for item in (layer, called, compiled, functional, sequential, metric) for name in vars(item)}
    late = {"_is_default", "_saved_model_arg_spec", "_steps_per_execution", "_training_state", "history"}
    return frozenset(names | late | {"optimizer", "stop_training", "train_tf_function"})
