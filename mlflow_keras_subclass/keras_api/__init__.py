"""The seam: everything that this package asks of Keras goes through ``KerasApi``; Keras is imported here only.

``for_model`` and ``for_runtime`` import Keras when called, never before: importing it fixes the backend. The word
backend means tensorflow, jax or torch, as in Keras. Imports errors and specs.

Private names of Keras used here (each held by a test): ``Layer._layers``, ``_trainable_variables``,
``_non_trainable_variables``, ``_flatten_layers``, ``_seed_generators`` because there is no public list of a layer's
*own* state; ``_build_shapes_dict`` because ``get_build_config()`` is lossy for overrides; ``_is_default`` on methods;
``Variable._initialize_with_initializer``; ``Layer._tracker``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import CaptureError, FormatError
from mlflow_keras_subclass.keras_api import devices, inference
from mlflow_keras_subclass.keras_api.configs import is_purely_keras
from mlflow_keras_subclass.specs import InputSpec

__all__ = ["KerasApi", "for_model", "for_runtime"]

# Construction changes globals of Keras: one at a time in a process.
_CONSTRUCTION = threading.RLock()


def for_runtime() -> KerasApi:
    """The seam to the Keras of this process, imported now if it was not."""
    return KerasApi(importlib.import_module("keras"))


def for_model(model: Any) -> KerasApi:
    """The seam to the Keras that ``model`` is made of.

    Raises:
        CaptureError: ``model`` is not a Keras 3 model.
    """
    api = for_runtime()
    if not isinstance(model, api.keras.Model):
        kind = type(model)
        raise CaptureError(
            f"model: expected an instance of a keras.Model subclass (Keras {api.version}), got "
            f"{kind.__module__}.{kind.__qualname__}. Pass the model object itself; models of tf_keras (legacy "
            "Keras 2) and plain layers cannot be logged with this release: wrap a layer in a keras.Model."
        )
    return api


class KerasApi:
    """What the rest of the package needs of one Keras, in terms that do not depend on its version or backend."""

    def __init__(self, keras: Any) -> None:
        """Use the imported package ``keras``."""
        self.keras = keras
        self.version: str = keras.__version__
        self.backend: str = keras.backend.backend()

    @property
    def backend_version(self) -> str:
        """Version of the backend's distribution."""
        return str(importlib.import_module(self.backend).__version__)

    # --- what kind of thing an object is

    def is_layer(self, value: Any) -> bool:
        """Whether ``value`` is a layer or model."""
        return isinstance(value, self.keras.layers.Layer)

    def is_model(self, value: Any) -> bool:
        """Whether ``value`` is a model."""
        return isinstance(value, self.keras.Model)

    def is_functional(self, value: Any) -> bool:
        """Whether ``value`` is a Functional model of Keras' own class, made from symbolic tensors."""
        return type(value) is self.functional_class

    def is_sequential(self, value: Any) -> bool:
        """Whether ``value`` is a Sequential model of Keras' own class."""
        return type(value) is self.keras.Sequential

    def is_optimizer(self, value: Any) -> bool:
        """Whether ``value`` is an optimizer."""
        return isinstance(value, self.keras.optimizers.Optimizer)

    def is_metric(self, value: Any) -> bool:
        """Whether ``value`` is a metric."""
        return isinstance(value, self.keras.metrics.Metric)

    def is_variable(self, value: Any) -> bool:
        """Whether ``value`` holds state: a Keras variable or a variable of the backend."""
        return isinstance(value, self._variable_types)

    def is_tensor(self, value: Any) -> bool:
        """Whether ``value`` is a concrete tensor of the backend (not a variable, not symbolic)."""
        if isinstance(value, self._variable_types) or not self.keras.ops.is_tensor(value):
            return False
        return self.backend != "tensorflow" or hasattr(value, "numpy")

    def is_own(self, value: Any) -> bool:
        """Whether the class (or the function) ``value`` is of comes from Keras itself."""
        module = getattr(value if callable(value) and hasattr(value, "__qualname__") else type(value), "__module__", "")
        return str(module).split(".")[0] == "keras"

    def is_keras_object(self, value: Any) -> bool:
        """Whether ``value`` is an instance of a class of Keras or of a subclass of one."""
        return any(base.__module__.split(".")[0] == "keras" for base in type(value).__mro__)

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
    def functional_class(self) -> Any:
        """Keras' own class of models that are made from symbolic tensors."""
        with self.name_scope():
            inputs = self.keras.Input((1,))
            return type(self.keras.Model(inputs, self.keras.layers.Identity()(inputs)))

    # --- state

    def own_variables(self, layer: Any) -> list[Any]:
        """The variables that ``layer`` itself owns, without those of its sublayers and metrics."""
        return [*layer._trainable_variables, *layer._non_trainable_variables]

    def order_variables(self, layer: Any, variables: Sequence[Any]) -> None:
        """Put the variables that ``layer`` itself owns into this order, which ``layer.variables`` has then."""
        for group in (layer._trainable_variables, layer._non_trainable_variables):
            _sort_like(group, variables)

    def order_sublayers(self, layer: Any, sublayers: Sequence[Any]) -> None:
        """Put the layers tracked directly by ``layer`` into this order."""
        _sort_like(layer._layers, sublayers)

    def sublayers(self, layer: Any) -> list[Any]:
        """The layers tracked directly by ``layer``, in Keras' order."""
        return list(layer._flatten_layers(include_self=False, recursive=False))

    def seed_generators(self, layer: Any) -> list[Any]:
        """The seed generators tracked directly by ``layer``."""
        return list(layer._seed_generators)

    def value(self, variable: Any) -> np.ndarray[Any, Any]:
        """The value of a variable or tensor as an array of its own dtype (``bfloat16`` as ``ml_dtypes``)."""
        return np.asarray(self.keras.ops.convert_to_numpy(variable))

    def flat(self, structure: Any) -> list[Any]:
        """The leaves of a nested structure, in Keras' order."""
        leaves: list[Any] = self.keras.tree.flatten(structure)
        return leaves

    def tensor(self, value: Any) -> Any:
        """An array as a tensor of the backend; text as strings."""
        value = np.asarray(value)
        if value.dtype == object or value.dtype.kind in "US":
            return importlib.import_module("tensorflow").constant(value.tolist())
        return self.keras.ops.convert_to_tensor(value)

    def assign(self, variable: Any, value: np.ndarray[Any, Any]) -> None:
        """Set a variable's value; shape and dtype were compared by the caller."""
        if self.backend == "torch" and not isinstance(variable, self.keras.Variable):
            torch = importlib.import_module("torch")
            variable.data.copy_(torch.from_numpy(np.array(value)))
            return
        variable.assign(value)

    def shape_and_dtype(self, variable: Any) -> tuple[tuple[int, ...], str]:
        """A variable's shape and the name of its dtype."""
        shape = tuple(int(size) for size in variable.shape)
        return shape, self.keras.backend.standardize_dtype(variable.dtype)

    def is_trainable(self, variable: Any) -> bool:
        """Whether the optimizer may change ``variable``."""
        return bool(getattr(variable, "trainable", getattr(variable, "requires_grad", False)))

    @functools.cached_property
    def internal_attributes(self) -> frozenset[str]:
        """Names of the attributes that Keras itself puts on layers and models, built, compiled and called or not."""
        keras = self.keras
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.name_scope())
            layer, model = keras.layers.Layer(), keras.Model()
            compiled = keras.Model()
            compiled.compile(optimizer=None, loss="mse", metrics=["mse"])
            inputs = keras.Input((1,))
            functional = keras.Model(inputs, keras.layers.Identity()(inputs))
            sequential = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
        names = {name for item in (layer, model, compiled, functional, sequential) for name in vars(item)}
        late = {"_is_default", "_predict_on_batch", "_test_counter", "_train_counter", "autocast", "optimizer"}
        return frozenset(names | late)

    @contextlib.contextmanager
    def name_scope(self) -> Iterator[None]:
        """Layers made inside take no numbers from the automatic names of the user's layers."""
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

    # --- building

    def has_default_build(self, layer: Any) -> bool:
        """Whether ``layer`` leaves building to Keras, which then builds it by calling it."""
        return bool(getattr(layer.build, "_is_default", False))

    def overrides_build_config(self, layer: Any) -> bool:
        """Whether the class has a ``get_build_config`` of its own, to be answered by its ``build_from_config``."""
        bases = (self.keras.layers.Layer, self.keras.Model)
        return all(type(layer).get_build_config is not base.get_build_config for base in bases)

    def build_arguments(self, layer: Any) -> dict[str, Any] | None:
        """The arguments that ``layer.build`` was called with by name, or ``None`` if it was never called."""
        recorded = getattr(layer, "_build_shapes_dict", None)
        return None if recorded is None else dict(recorded)

    def mark_built(self, layer: Any) -> None:
        """Mark a layer built whose sublayers were built one by one."""
        layer.built = True

    @contextlib.contextmanager
    def unlocked(self, layers: Iterable[Any]) -> Iterator[None]:
        """Built layers take new layers and metrics inside, as they do in the user's process before they are built."""
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
        """Rank and alpha of the low-rank adapter that ``enable_lora`` gave to ``layer``; ``None`` without one."""
        if not getattr(layer, "lora_enabled", False):
            return None
        return {"rank": int(layer.lora_rank), "alpha": float(getattr(layer, "lora_alpha", layer.lora_rank))}

    def enable_lora(self, layer: Any, *, rank: int, alpha: float) -> None:
        """Give a built layer a low-rank adapter; its variables are restored like all others."""
        layer.enable_lora(rank, lora_alpha=alpha)

    def dtype_policy(self, layer: Any) -> Any:
        """The serialised dtype policy of ``layer``: its name, or a nested config."""
        policy = layer.dtype_policy
        plain = type(policy) is self.keras.dtype_policies.DTypePolicy
        return policy.name if plain else self.serialize(policy)

    def set_dtype_policy(self, layer: Any, recorded: Any) -> None:
        """Give ``layer`` a recorded dtype policy."""
        layer.dtype_policy = recorded if isinstance(recorded, str) else self.deserialize(recorded)

    @contextlib.contextmanager
    def construction(self, *, dtype_policy: Any, floatx: str, custom_objects: Mapping[str, Any]) -> Iterator[None]:
        """Build as in the process that logged: its global dtype policy and floatx, and its registered names.

        The registered names are swapped into Keras' global registry, not a ``custom_object_scope``: Keras 3.0 to
        3.15.1 drops an outer scope after one level of nesting. Random initial values are zeros, since they are
        overwritten: drawing them is three quarters of the time to rebuild a model of 1 GB. Everything is restored
        on leaving; one thread constructs at a time.
        """
        with _CONSTRUCTION, self._zero_initialization(), self._globals(dtype_policy, floatx, custom_objects):
            yield

    @contextlib.contextmanager
    def _globals(self, dtype_policy: Any, floatx: str, custom_objects: Mapping[str, Any]) -> Iterator[None]:
        config, registry = self.keras.config, self.keras.saving.get_custom_objects()
        policy, old_floatx, registered = config.dtype_policy(), config.floatx(), dict(registry)
        try:
            config.set_floatx(floatx)
            config.set_dtype_policy(dtype_policy if isinstance(dtype_policy, str) else self.deserialize(dtype_policy))
            registry.update(custom_objects)
            yield
        finally:
            registry.clear()
            registry.update(registered)
            config.set_floatx(old_floatx)
            config.set_dtype_policy(policy)

    @contextlib.contextmanager
    def _zero_initialization(self) -> Iterator[None]:
        # Private: there is no public way to make a variable without computing its initial value.
        initializers, variable = self.keras.initializers, self.keras.Variable
        zeros = initializers.Zeros()
        drawn = (
            initializers.VarianceScaling,
            initializers.RandomNormal,
            initializers.RandomUniform,
            initializers.TruncatedNormal,
            initializers.Orthogonal,
        )
        original = variable._initialize_with_initializer

        def initialize(self: Any, initializer: Any) -> None:
            is_random = isinstance(initializer, drawn) and type(initializer).__module__.startswith("keras.")
            original(self, zeros if is_random else initializer)

        variable._initialize_with_initializer = initialize
        try:
            yield
        finally:
            variable._initialize_with_initializer = original

    @property
    def floatx(self) -> str:
        """The default float dtype."""
        return str(self.keras.config.floatx())

    # --- serialisation of Keras' own objects

    def serialize(self, value: Any) -> Any:
        """Keras' own configuration of one of its own objects or functions."""
        return self.keras.saving.serialize_keras_object(value)

    def deserialize(self, config: Any) -> Any:
        """The inverse of ``serialize``, in safe mode.

        Raises:
            FormatError: ``config`` names what is not Keras' own, marshalled code or a file.
        """
        if not is_purely_keras(config):
            raise FormatError(
                f"A configuration of Keras names marshalled code, a file or what is not Keras' own: {config!r:.300}. "
                "Nothing of this kind is written when a model is logged, and it is not read."
            )
        return self.keras.saving.deserialize_keras_object(config, safe_mode=True)

    def registered_names(self) -> dict[str, Any]:
        """Everything registered under a name with Keras in this process."""
        return dict(self.keras.saving.get_custom_objects())

    # --- running

    def check_device(self, name: str | None) -> str | None:
        """The canonical name (``cpu:0``, ``gpu:1``) of a device, ``None`` for ``auto``; ``DeviceError`` if absent."""
        return devices.check(self.backend, name)

    def devices(self) -> tuple[str, ...]:
        """The devices of this process: ``("cpu:0", "gpu:0")``."""
        return devices.present(self.backend)

    def device(self, name: str | None) -> contextlib.AbstractContextManager[Any]:
        """A scope that puts variables and computation on a device that ``check_device`` returned."""
        return contextlib.nullcontext() if name is None else self.keras.device(name)

    def enable_memory_growth(self) -> None:
        """Let the process take GPU memory as it needs it, so that several servers share one GPU."""
        devices.enable_memory_growth(self.backend)

    def set_threads(self, count: int) -> None:
        """Let one operation use ``count`` threads, if the backend has not computed yet."""
        devices.set_threads(self.backend, count)

    def compiled(
        self,
        model: Any,
        input_spec: InputSpec | None,
        *,
        device: str | None,
        jit_compile: bool,
        method: str = "call",
    ) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
        """A function of a call's arguments (arrays) that returns the model's outputs (arrays).

        It is compiled with open batch dimensions and traced once, here, on ``input_spec``; it may be called from
        many threads. A class that overrides ``predict`` or ``predict_step`` is served by that method, and any class
        by another ``method`` that is named.
        """
        return inference.compiled(self, model, input_spec, device=device, jit_compile=jit_compile, method=method)


def _sort_like(items: list[Any], order: Sequence[Any]) -> None:
    places = {id(item): number for number, item in enumerate(order)}
    items.sort(key=lambda item: places.get(id(item), len(places)))
