"""What the rest of the package asks of a Keras, whichever it is: the base of the two sides of the seam.

What Keras 3 and tf_keras answer alike is answered here; the rest is abstract. Imports errors, specs, configs, devices,
inference and registry_lock.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.keras_api import devices, inference, torch_state
from mlflow_keras_subclass.keras_api.configs import is_purely_keras, on_every_backend, without_unknown_nulls
from mlflow_keras_subclass.keras_api.construction import without_pretrained_weights
from mlflow_keras_subclass.keras_api.tensorflow_memory import read_in_place, taken_over
from mlflow_keras_subclass.registry_lock import NAMES_BY_CLASS, REGISTRY_LOCK
from mlflow_keras_subclass.specs import InputSpec

__all__ = ["KerasApi"]


class KerasApi(abc.ABC):
    """What the rest of the package needs of one Keras, in terms that do not depend on its version or backend.

    ``distribution`` is the name of the package that is imported: ``keras`` or ``tf_keras``.
    """

    distribution: ClassVar[str]

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

    def is_metric(self, value: Any) -> bool:
        """Whether ``value`` is a metric."""
        return isinstance(value, self.keras.metrics.Metric)

    def holds_vocabulary(self, value: Any) -> bool:
        """Whether ``value`` is a layer with a lookup table, the state of which is no variable."""
        layers = self.keras.layers
        return isinstance(value, layers.StringLookup | layers.IntegerLookup)

    def is_own(self, value: Any) -> bool:
        """Whether the class (or the function) ``value`` is of comes from Keras itself."""
        module = getattr(value if callable(value) and hasattr(value, "__qualname__") else type(value), "__module__", "")
        return self.is_own_module(module)

    def is_own_module(self, module: Any) -> bool:
        """Whether a module of this name is part of Keras."""
        return str(module).partition(".")[0] == self.distribution

    def is_keras_object(self, value: Any) -> bool:
        """Whether ``value`` is an instance of a class of Keras or of a subclass of one."""
        return any(self.is_own_module(base.__module__) for base in type(value).__mro__)

    def is_open(self, kind: type) -> bool:
        """Whether instances of a class that is not the user's are looked into: modules of the backend."""
        modules = ("tensorflow.python.module.module", "torch.nn.modules.module")
        return any(base.__module__ in modules for base in kind.__mro__)

    @abc.abstractmethod
    def is_optimizer(self, value: Any) -> bool:
        """Whether ``value`` is an optimizer."""

    @abc.abstractmethod
    def is_variable(self, value: Any) -> bool:
        """Whether ``value`` holds state: a Keras variable or a variable of the backend."""

    @abc.abstractmethod
    def is_seed_generator(self, value: Any) -> bool:
        """Whether ``value`` draws random numbers from a state of its own, its attribute ``state``."""

    @abc.abstractmethod
    def is_tensor(self, value: Any) -> bool:
        """Whether ``value`` is a concrete tensor of the backend (not a variable, not symbolic)."""

    @abc.abstractmethod
    def is_symbolic(self, value: Any) -> bool:
        """Whether ``value`` is a symbolic tensor of a Functional model."""

    @functools.cached_property
    def functional_class(self) -> Any:
        """Keras' own class of models that are made from symbolic tensors."""
        with self.name_scope():
            inputs = self.keras.Input((1,))
            return type(self.keras.Model(inputs, self.keras.layers.Identity()(inputs)))

    def layer_class(self, name: str) -> Any:
        """Keras' own layer class of this name, ``Sequential`` among them, or ``None``."""
        kind = self.keras.Sequential if name == "Sequential" else getattr(self.keras.layers, name, None)
        return kind if isinstance(kind, type) and issubclass(kind, self.keras.layers.Layer) else None

    def place_of_class(self, kind: type) -> str | None:
        """Where Keras offers a class of its own that is no layer: ``optimizers.Adam``; ``None`` if nowhere."""
        places = (f"{home}.{kind.__name__}" for home in self._homes())
        # On torch an optimizer's class is the backend's own, below the one that is offered.
        return next((place for place in places if issubclass(kind, self.class_at(place) or ())), None)

    def class_at(self, place: str) -> Any:
        """The inverse of ``place_of_class``; ``None`` for a name that it never gives."""
        home, _, name = place.rpartition(".")
        module, base = self._homes().get(home, (None, None))
        kind = getattr(module, name, None)
        return kind if isinstance(kind, type) and base is not None and issubclass(kind, base) else None

    def _homes(self) -> dict[str, tuple[Any, type]]:
        keras = self.keras
        return {
            "optimizers": (keras.optimizers, keras.optimizers.Optimizer),
            "optimizers.schedules": (
                keras.optimizers.schedules,
                keras.optimizers.schedules.LearningRateSchedule,
            ),
            "losses": (keras.losses, keras.losses.Loss),
            "metrics": (keras.metrics, keras.metrics.Metric),
        }

    def sequential(self, inputs: Iterable[tuple[Sequence[int | None], str]], layers: Iterable[Any], name: str) -> Any:
        """A Sequential model of Keras' own class; ``inputs`` are shapes with batch and dtypes, none or one."""
        symbols = [self.keras.Input(batch_shape=shape, dtype=dtype) for shape, dtype in inputs]
        return self.keras.Sequential([*symbols, *layers], name=name)

    def batch_shape(self, input_layer: Any) -> tuple[int | None, ...]:
        """The shape that an input layer takes, with its batch dimension."""
        return tuple(input_layer.batch_shape)

    # --- state

    def attributes(self, owner: Any) -> Mapping[str, Any]:
        """The attributes of an object by name, also those that the backend keeps elsewhere."""
        found: Mapping[str, Any] = vars(owner)
        return found

    def hidden_attributes(self, owner: Any) -> frozenset[str]:
        """Names of the attributes of ``owner`` that are Keras' own bookkeeping."""
        return self.internal_attributes if self.is_layer(owner) else frozenset()

    def buffers(self, owner: Any) -> Mapping[str, Any]:
        """Tensors by name that are state of the object though they are no variables."""
        return {}

    def wrapped_variables(self, layer: Any) -> Mapping[int, Any]:
        """Keras' variables of ``layer`` by the identity of the backend's own variables that they wrap."""
        return {}

    @functools.cached_property
    @abc.abstractmethod
    def internal_attributes(self) -> frozenset[str]:
        """Names of the attributes that Keras itself puts on layers and models, built, compiled and called or not."""

    @abc.abstractmethod
    def own_variables(self, layer: Any) -> list[Any]:
        """The variables that ``layer`` itself owns, without those of its sublayers and metrics."""

    @abc.abstractmethod
    def order_variables(self, layer: Any, variables: Sequence[Any]) -> None:
        """Put the variables that ``layer`` itself owns into this order, which ``layer.variables`` has then."""

    @abc.abstractmethod
    def sublayers(self, layer: Any) -> list[Any]:
        """The layers tracked directly by ``layer``, in Keras' order."""

    @abc.abstractmethod
    def order_sublayers(self, layer: Any, sublayers: Sequence[Any]) -> None:
        """Put the layers tracked directly by ``layer`` into this order."""

    @abc.abstractmethod
    def seed_generators(self, layer: Any) -> list[Any]:
        """The seed generators tracked directly by ``layer``."""

    @abc.abstractmethod
    def value(self, variable: Any) -> np.ndarray[Any, Any]:
        """The value of a variable or tensor as an array of its own dtype (``bfloat16`` as ``ml_dtypes``)."""

    def snapshot(self, variable: Any) -> np.ndarray[Any, Any]:
        """The value of a variable as it is now, only to be read; no copy where the backend lets it be read in place.

        Two snapshots in the same memory are equal.
        """
        found = read_in_place(variable) if self.backend == "tensorflow" else None
        return self.value(variable) if found is None else found

    @abc.abstractmethod
    def tensor(self, value: Any) -> Any:
        """An array as a tensor of the backend; text as strings."""

    @abc.abstractmethod
    def assign(self, variable: Any, value: np.ndarray[Any, Any]) -> None:
        """Set a variable's value; shape and dtype were compared by the caller."""

    def hand_over(self, variable: Any, value: np.ndarray[Any, Any]) -> None:
        """As ``assign``; the variable may keep the array's memory, which nobody may use any more."""
        self.assign(variable, taken_over(value) if self.backend == "tensorflow" else value)

    def add_variable(self, layer: Any, shape: tuple[int, ...], dtype: str, trainable: bool) -> Any:
        """Give a layer one more variable of its own, without a value."""
        add_weight = self.keras.layers.Layer.add_weight  # not a method of the user's
        with self.unlocked([layer]):
            return add_weight(layer, shape=shape, dtype=dtype, trainable=trainable, initializer="zeros")

    def memory_order(self, variable: Any) -> tuple[int, ...] | None:
        """The axes of a variable as they lie in memory, if that is another order than their own.

        Torch multiplies by a transposed matrix in another order of sums, so that it is part of what is computed: the
        orthogonal initializer leaves one in every square recurrent kernel.
        """
        return torch_state.memory_order(variable) if self.backend == "torch" else None

    def set_memory_order(self, variable: Any, order: tuple[int, ...]) -> None:
        """Lay a variable out as ``memory_order`` says, before its value is assigned; on torch only."""
        if self.backend == "torch":
            torch_state.set_memory_order(variable, order)

    @abc.abstractmethod
    def shape_and_dtype(self, variable: Any) -> tuple[tuple[int, ...], str]:
        """A variable's shape and the name of its dtype."""

    @abc.abstractmethod
    def name_of(self, variable: Any) -> str:
        """What a user knows a variable by."""

    def is_trainable(self, variable: Any) -> bool:
        """Whether the optimizer may change ``variable``."""
        return bool(getattr(variable, "trainable", getattr(variable, "requires_grad", False)))

    def vocabulary(self, layer: Any) -> list[Any]:
        """The terms of a lookup layer, the special ones among them."""
        return list(layer.get_vocabulary(include_special_tokens=True))

    def finalize_state(self, layer: Any) -> None:
        """Derive again what Normalization and its like compute from their variables."""
        if self.is_own(layer) and layer.built and hasattr(layer, "finalize_state"):
            layer.finalize_state()

    @abc.abstractmethod
    def optimizer_variables(self, optimizer: Any) -> list[Any]:
        """Iterations, slots and everything else that an optimizer keeps."""

    @abc.abstractmethod
    def trained_variables(self, optimizer: Any, candidates: Iterable[Any] = ()) -> list[Any]:
        """The variables that an optimizer was built on, in its order; none if it was not built.

        Where the optimizer names them only, they are looked for among the ``candidates``.
        """

    @abc.abstractmethod
    def build_optimizer(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Make the slots of an optimizer, unless it has them."""

    # --- building

    def has_default_build(self, layer: Any) -> bool:
        """Whether ``layer`` leaves building to Keras, which then builds it by calling it."""
        return bool(getattr(layer.build, "_is_default", False))

    def overrides_build_config(self, layer: Any) -> bool:
        """Whether the class has a ``get_build_config`` of its own, to be answered by its ``build_from_config``."""
        bases = (self.keras.layers.Layer, self.keras.Model)
        return all(type(layer).get_build_config is not base.get_build_config for base in bases)

    def overrides_from_config(self, kind: Any) -> bool:
        """Whether a class of models, layers or other Keras objects has a ``from_config`` of its own."""
        return not self.is_own(next(base for base in kind.__mro__ if "from_config" in vars(base)))

    def overrides_compile(self, kind: Any) -> bool:
        """Whether a class of models has a ``compile`` of its own."""
        return kind.compile is not self.keras.Model.compile

    def compile_config(self, model: Any) -> dict[str, Any]:
        """The arguments that Keras' own ``compile`` was called with."""
        # Private: the only place that keeps the arguments as they are; get_compile_config() returns them serialised.
        return dict(model._compile_config.config)

    def mark_built(self, layer: Any) -> None:
        """Mark a layer built whose sublayers were built one by one."""
        layer.built = True

    @abc.abstractmethod
    def is_compiled(self, model: Any) -> bool:
        """Whether ``compile`` was called."""

    @abc.abstractmethod
    def rename(self, layer: Any, name: str) -> None:
        """Give a layer its recorded name."""

    @abc.abstractmethod
    def scope(self, layer: Any) -> str:
        """The name scopes that ``layer`` was built in, joined by ``/``."""

    @abc.abstractmethod
    def name_scopes(self, scope: str) -> contextlib.AbstractContextManager[None]:
        """Build as inside the scopes that ``scope`` returned; variables are named after them."""

    @abc.abstractmethod
    def name_scope(self) -> contextlib.AbstractContextManager[None]:
        """Layers made inside take no numbers from the automatic names of the user's layers."""

    @abc.abstractmethod
    def build_arguments(self, layer: Any) -> dict[str, Any] | None:
        """The arguments that ``layer.build`` was called with by name, or ``None`` if it was never called."""

    @abc.abstractmethod
    def unlocked(self, layers: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
        """Built layers take new layers and metrics inside, as they do in the user's process before they are built."""

    @abc.abstractmethod
    def lora(self, layer: Any) -> dict[str, Any] | None:
        """Rank and alpha of the low-rank adapter that ``enable_lora`` gave to ``layer``; ``None`` without one."""

    @abc.abstractmethod
    def enable_lora(self, layer: Any, *, rank: int, alpha: float) -> None:
        """Give a built layer a low-rank adapter; its variables are restored like all others."""

    @abc.abstractmethod
    def dtype_policy(self, layer: Any) -> Any:
        """The serialised dtype policy of ``layer``: its name, or a nested config."""

    @abc.abstractmethod
    def set_dtype_policy(self, layer: Any, recorded: Any) -> None:
        """Give ``layer`` a recorded dtype policy."""

    @contextlib.contextmanager
    def construction(
        self, *, dtype_policy: Any, floatx: str, custom_objects: Mapping[str, Any], draws: bool = False
    ) -> Iterator[None]:
        """Build as in the process that logged: its global dtype policy and floatx, and its registered names.

        The registered names are swapped into Keras' global registry, not a ``custom_object_scope``: Keras 3.0 to
        3.15.1 drops an outer scope after one level of nesting. The classes get their names there as well, for
        constructors that serialise a layer of theirs and have Keras make another from that. Random initial values are
        zeros, since they are overwritten: drawing them is three quarters of the time to rebuild a model of 1 GB; and
        pretrained weights that a constructor fetches are not. With ``draws`` they are drawn, for a model that keeps
        some of them. Everything is restored on leaving; one thread constructs at a time.
        """
        with (
            REGISTRY_LOCK,
            contextlib.nullcontext() if draws else self._zero_initialization(),
            without_pretrained_weights(self.keras),
            self._globals(dtype_policy, floatx, custom_objects),
        ):
            yield

    @contextlib.contextmanager
    def _globals(self, dtype_policy: Any, floatx: str, custom_objects: Mapping[str, Any]) -> Iterator[None]:
        registry = self.keras.saving.get_custom_objects()
        policy, old_floatx, registered = self._global_policy(), self.floatx, dict(registry)
        names = self._names_by_class()
        added = {item: name for name, item in custom_objects.items() if _is_named(item) and item not in names}
        try:
            self.keras.backend.set_floatx(floatx)
            self._set_global_policy(dtype_policy if isinstance(dtype_policy, str) else self.deserialize(dtype_policy))
            registry.update(custom_objects)
            names.update(added)
            yield
        finally:
            for item in added:
                names.pop(item, None)
            registry.clear()
            registry.update(registered)
            self.keras.backend.set_floatx(old_floatx)
            self._set_global_policy(policy)

    @abc.abstractmethod
    def _zero_initialization(self) -> contextlib.AbstractContextManager[None]:
        """Variables made inside, on this thread, start as zeros where Keras would draw their values."""

    def _drawing_initializers(self) -> tuple[type, ...]:
        initializers = self.keras.initializers
        return (
            initializers.VarianceScaling,
            initializers.RandomNormal,
            initializers.RandomUniform,
            initializers.TruncatedNormal,
            initializers.Orthogonal,
        )

    @abc.abstractmethod
    def _global_policy(self) -> Any: ...

    def _names_by_class(self) -> dict[Any, str]:
        """Keras' live table of the names under which classes and functions are registered."""
        module, attribute = NAMES_BY_CLASS[self.distribution]
        names: dict[Any, str] = getattr(importlib.import_module(module), attribute)
        return names

    @abc.abstractmethod
    def _set_global_policy(self, policy: Any) -> None: ...

    @property
    def floatx(self) -> str:
        """The default float dtype."""
        return str(self.keras.backend.floatx())

    # --- serialisation of Keras' own objects

    def is_purely_own(self, config: Any) -> bool:
        """Whether a configuration names nothing but Keras' own classes, no marshalled code and no file."""
        return is_purely_keras(self.keras, config)

    def serialize(self, value: Any) -> Any:
        """Keras' own configuration of one of its own objects or functions."""
        return on_every_backend(self.keras.saving.serialize_keras_object(value))

    def deserialize(self, config: Any) -> Any:
        """The inverse of ``serialize``, in safe mode.

        Raises:
            FormatError: ``config`` names what is not Keras' own, marshalled code or a file.
        """
        if not self.is_purely_own(config):
            raise FormatError(
                f"A configuration of Keras names marshalled code, a file or what is not Keras' own: {config!r:.300}. "
                "Nothing of this kind is written when a model is logged, and it is not read."
            )
        return self._read(config, lambda read: self.keras.saving.deserialize_keras_object(read, safe_mode=True))

    def functional(self, config: Any, custom_objects: Mapping[str, Any]) -> Any:
        """A Functional model of Keras' own class from the description of its graph, in safe mode as ``deserialize``.

        Args:
            config: What the model's ``get_config`` returned.
            custom_objects: Stand for the layers that the description does not describe.

        Raises:
            FormatError: ``config`` names what is not Keras' own, marshalled code or a file.
        """
        if not self.is_purely_own(config):
            raise FormatError("config: a graph names marshalled code, a file or what is not Keras' own; not read.")
        return self._read(config, lambda read: self.functional_class.from_config(read, custom_objects=custom_objects))

    def _read(self, config: Any, read: Callable[[Any], Any]) -> Any:
        """What ``read`` makes of a configuration, or else of what an older release of Keras knows of it."""
        known = without_unknown_nulls(self.keras, config)  # Before Keras takes it apart as it reads.
        if known == config:
            return read(config)
        try:
            return read(config)
        except (TypeError, ValueError) as error:
            # The first error names all that is not known, whatever becomes of the rest.
            with contextlib.suppress(TypeError, ValueError):
                return read(known)
            raise error

    def registered_names(self) -> dict[str, Any]:
        """Everything registered under a name with Keras in this process."""
        return dict(self.keras.saving.get_custom_objects())

    # --- running

    @abc.abstractmethod
    def flat(self, structure: Any) -> list[Any]:
        """The leaves of a nested structure, in Keras' order."""

    @abc.abstractmethod
    def map_structure(self, function: Callable[[Any], Any], structure: Any) -> Any:
        """The same nesting with ``function`` of every leaf."""

    @abc.abstractmethod
    def symbolic_outputs(self, model: Any, input_spec: InputSpec) -> Any:
        """What a call of ``model`` returns, as symbolic tensors; raises what the model raises on such inputs."""

    def check_device(self, name: str | None) -> str | None:
        """The canonical name (``cpu:0``, ``gpu:1``) of a device, ``None`` for ``auto``; ``DeviceError`` if absent."""
        return devices.check(self.backend, name)

    def devices(self) -> tuple[str, ...]:
        """The devices of this process: ``("cpu:0", "gpu:0")``."""
        return devices.present(self.backend)

    @abc.abstractmethod
    def device(self, name: str | None) -> contextlib.AbstractContextManager[Any]:
        """A scope that puts variables and computation on a device that ``check_device`` returned."""

    def is_partitioned(self) -> bool:
        """Whether single variables are split among devices, so that sums are taken in another order than on one."""
        # Only Keras 3 has distributions of its own.
        distribution = getattr(self.keras, "distribution", None)
        return distribution is not None and isinstance(distribution.distribution(), distribution.ModelParallel)

    def enable_memory_growth(self) -> None:
        """Let the process take GPU memory as it needs it, so that several servers share one GPU."""
        devices.enable_memory_growth(self.backend)

    def set_threads(self, count: int) -> None:
        """Let one operation use ``count`` threads, if the backend has not computed yet."""
        devices.set_threads(self.backend, count)

    @abc.abstractmethod
    def takes_training(self, model: Any) -> bool:
        """Whether ``training=`` can be passed to a call of ``model``."""

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


def _is_named(item: Any) -> bool:
    return isinstance(item, type | types.FunctionType)


def sort_like(items: list[Any], order: Sequence[Any]) -> None:
    """Sort ``items`` in place by their positions in ``order``; what is not in it stays behind."""
    places = {id(item): number for number, item in enumerate(order)}
    # By assignment: the lists that TensorFlow puts in place of attributes have a sort without a key.
    items[:] = sorted(items, key=lambda item: places.get(id(item), len(places)))
