"""Keras 3, with TensorFlow, JAX or torch.

Private names of Keras used here (each held by a test): ``Layer._layers``, ``_trainable_variables``,
``_non_trainable_variables``, ``_flatten_layers``, ``_seed_generators`` because there is no public list of a layer's
*own* state; ``_build_shapes_dict`` because ``get_build_config()`` is lossy for overrides; ``_is_default`` on methods;
``Variable._initialize_with_initializer``; ``Layer._tracker``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_keras_subclass.keras_api import torch_state
from mlflow_keras_subclass.keras_api.common import KerasApi, sort_like
from mlflow_keras_subclass.keras_api.construction import on_this_thread
from mlflow_keras_subclass.keras_api.tensorflow_memory import untouched_zeros
from mlflow_keras_subclass.specs import InputSpec

__all__ = ["Keras3Api"]


class Keras3Api(KerasApi):
    """The seam to the package ``keras``, version 3."""

    distribution = "keras"

    # --- what kind of thing an object is

    def is_optimizer(self, value: Any) -> bool:
        return isinstance(value, self.keras.optimizers.Optimizer)

    def is_variable(self, value: Any) -> bool:
        return isinstance(value, self._variable_types)

    def is_seed_generator(self, value: Any) -> bool:
        return isinstance(value, self._generator_types)

    def is_tensor(self, value: Any) -> bool:
        # A dict whose keys are attributes has every attribute that a backend knows tensors by, or raises.
        if isinstance(value, (dict, *self._variable_types)) or not self.keras.ops.is_tensor(value):
            return False
        return self.backend != "tensorflow" or hasattr(value, "numpy")

    def is_symbolic(self, value: Any) -> bool:
        return isinstance(value, self.keras.KerasTensor)

    @functools.cached_property
    def _variable_types(self) -> tuple[type, ...]:
        native: dict[str, Callable[[Any], type]] = {
            "tensorflow": lambda tf: tf.Variable,
            "torch": lambda torch: torch.nn.Parameter,
        }
        kinds: list[type] = [self.keras.Variable]
        if self.backend in native:
            kinds.append(native[self.backend](importlib.import_module(self.backend)))
        return tuple(kinds)

    @functools.cached_property
    def _generator_types(self) -> tuple[type, ...]:
        kinds: list[type] = [self.keras.random.SeedGenerator]
        if self.backend == "tensorflow":
            kinds.append(importlib.import_module("tensorflow").random.Generator)
        return tuple(kinds)

    # --- state

    def attributes(self, owner: Any) -> Mapping[str, Any]:
        return torch_state.attributes(owner) if self.backend == "torch" else vars(owner)

    def buffers(self, owner: Any) -> Mapping[str, Any]:
        return torch_state.buffers(owner) if self.backend == "torch" else {}

    def wrapped_variables(self, layer: Any) -> Mapping[int, Any]:
        return torch_state.native_parameters(self.own_variables(layer)) if self.backend == "torch" else {}

    @functools.cached_property
    def internal_attributes(self) -> frozenset[str]:
        """See ``KerasApi``."""
        keras = self.keras
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.name_scope())
            layer, model = keras.layers.Layer(), keras.Model()
            compiled = keras.Model()
            compiled.compile(optimizer=None, loss="mse", metrics=["mse"])
            inputs = keras.Input((1,))
            functional = keras.Model(inputs, keras.layers.Identity()(inputs))
            sequential = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
        made = (layer, model, compiled, functional, sequential)
        names = {name for item in made for name in self.attributes(item)}
        late = {"_is_default", "_predict_on_batch", "_test_counter", "_train_counter", "autocast", "optimizer"}
        return frozenset(names | late)

    def own_variables(self, layer: Any) -> list[Any]:
        return [*layer._trainable_variables, *layer._non_trainable_variables]

    def order_variables(self, layer: Any, variables: Sequence[Any]) -> None:
        for group in (layer._trainable_variables, layer._non_trainable_variables):
            sort_like(group, variables)

    def sublayers(self, layer: Any) -> list[Any]:
        return list(layer._flatten_layers(include_self=False, recursive=False))

    def order_sublayers(self, layer: Any, sublayers: Sequence[Any]) -> None:
        sort_like(layer._layers, sublayers)

    def seed_generators(self, layer: Any) -> list[Any]:
        return list(layer._seed_generators)

    def value(self, variable: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self.keras.ops.convert_to_numpy(variable))

    def tensor(self, value: Any) -> Any:
        value = np.asarray(value)
        if value.dtype == object or value.dtype.kind in "US":
            return importlib.import_module("tensorflow").constant(value.tolist())
        return self.keras.ops.convert_to_tensor(value)

    def assign(self, variable: Any, value: np.ndarray[Any, Any]) -> None:
        if self.backend == "torch" and not isinstance(variable, self.keras.Variable):
            torch = importlib.import_module("torch")
            variable.data.copy_(torch.from_numpy(np.array(value)))
            return
        variable.assign(value)

    def shape_and_dtype(self, variable: Any) -> tuple[tuple[int, ...], str]:
        shape = tuple(int(size) for size in variable.shape)
        return shape, self.keras.backend.standardize_dtype(variable.dtype)

    def name_of(self, variable: Any) -> str:
        return str(getattr(variable, "path", None) or variable.name)

    def optimizer_variables(self, optimizer: Any) -> list[Any]:
        return list(optimizer.variables)

    def trained_variables(self, optimizer: Any, candidates: Iterable[Any] = ()) -> list[Any]:
        # Private: no public list of the variables that an optimizer was built on, and in which order.
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        return list(getattr(inner, "_trainable_variables", ())) if optimizer.built else []

    def build_optimizer(self, optimizer: Any, variables: Sequence[Any]) -> None:
        if not optimizer.built:
            optimizer.build(list(variables))

    # --- building

    def is_compiled(self, model: Any) -> bool:
        return bool(getattr(model, "compiled", False))

    def rename(self, layer: Any, name: str) -> None:
        layer.name = name

    def scope(self, layer: Any) -> str:
        return str(layer.path).rpartition("/")[0] if layer.path else ""

    @contextlib.contextmanager
    def name_scopes(self, scope: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in scope.split("/") if scope else ():
                stack.enter_context(self.keras.name_scope(name))
            yield

    @contextlib.contextmanager
    def name_scope(self) -> Iterator[None]:
        # Private: the counters behind automatic names ("dense_1") have no public accessor.
        state = importlib.import_module("keras.src.backend.common.global_state")
        counters = state.get_global_attribute("object_name_uids")
        saved = None if counters is None else dict(counters)
        try:
            yield
        finally:
            counters = state.get_global_attribute("object_name_uids")
            if counters is not None:
                counters.clear()
                counters.update(saved or {})

    def build_arguments(self, layer: Any) -> dict[str, Any] | None:
        recorded = getattr(layer, "_build_shapes_dict", None)
        return None if recorded is None else dict(recorded)

    @contextlib.contextmanager
    def unlocked(self, layers: Iterable[Any]) -> Iterator[None]:
        # Private: the tracker that refuses new state once a layer is built; nothing public opens it.
        locked = [layer._tracker for layer in layers if layer._tracker.locked]
        for tracker in locked:
            tracker.unlock()
        try:
            yield
        finally:
            for tracker in locked:
                tracker.lock()

    def lora(self, layer: Any) -> dict[str, Any] | None:
        if not getattr(layer, "lora_enabled", False):
            return None
        return {"rank": int(layer.lora_rank), "alpha": float(getattr(layer, "lora_alpha", layer.lora_rank))}

    def enable_lora(self, layer: Any, *, rank: int, alpha: float) -> None:
        layer.enable_lora(rank, lora_alpha=alpha)

    def dtype_policy(self, layer: Any) -> Any:
        policy = layer.dtype_policy
        plain = type(policy) is self.keras.dtype_policies.DTypePolicy
        return policy.name if plain else self.serialize(policy)

    def set_dtype_policy(self, layer: Any, recorded: Any) -> None:
        layer.dtype_policy = recorded if isinstance(recorded, str) else self.deserialize(recorded)

    @contextlib.contextmanager
    def _zero_initialization(self) -> Iterator[None]:
        # Private: there is no public way to make a variable without computing its initial value.
        zeros, drawn, variable = self.keras.initializers.Zeros(), self._drawing_initializers(), self.keras.Variable
        original = variable._initialize_with_initializer

        def untouched(shape: Sequence[int], dtype: Any = None, **_: Any) -> Any:
            found = untouched_zeros(shape, dtype) if self.backend == "tensorflow" else None
            return zeros(shape, dtype=dtype) if found is None else found

        def initialize(made: Any, initializer: Any) -> None:
            is_random = isinstance(initializer, drawn) and type(initializer).__module__.startswith("keras.")
            original(made, untouched if is_random else initializer)

        variable._initialize_with_initializer = on_this_thread(initialize, original)
        try:
            yield
        finally:
            variable._initialize_with_initializer = original

    def _global_policy(self) -> Any:
        return self.keras.config.dtype_policy()

    def _set_global_policy(self, policy: Any) -> None:
        self.keras.config.set_dtype_policy(policy)

    # --- running

    def flat(self, structure: Any) -> list[Any]:
        return list(self.keras.tree.flatten(structure))

    def map_structure(self, function: Callable[[Any], Any], structure: Any) -> Any:
        return self.keras.tree.map_structure(function, structure)

    def symbolic_outputs(self, model: Any, input_spec: InputSpec) -> Any:
        args, kwargs = input_spec.map(lambda spec: self.keras.KerasTensor(spec.shape, dtype=spec.dtype))
        return model.compute_output_spec(*args, **kwargs)

    def device(self, name: str | None) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if name is None else self.keras.device(name)

    def takes_training(self, model: Any) -> bool:
        # Private: Keras' own predict asks the same attribute.
        return bool(getattr(model, "_call_has_training_arg", True))
