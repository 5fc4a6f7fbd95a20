"""What a class's own ``get_config`` says of an instance, if it can be trusted to construct the instance again.

Imports recorder and keras_api.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.keras_api import KerasApi

__all__ = ["own_config"]


def own_config(api: KerasApi, instance: Any, arguments: recorder.Arguments | None) -> dict[str, Any] | None:
    """What the exact class's ``get_config`` returns, unless it leaves out an argument that was passed.

    Where the class has a ``from_config`` of its own, the config is in the form in which Keras hands it over.
    """
    kind = type(instance)
    if "get_config" not in vars(kind):
        return None
    try:
        config = dict(instance.get_config())
    except Exception:
        # The user's own get_config fails: what was recorded is the better source, if there is any.
        if arguments is None:
            raise
        return None
    if api.overrides_from_config(kind):
        return _as_keras_hands_over(api, config)
    return config if arguments is None or _covers(kind, config, arguments) else None


def _covers(kind: type, config: dict[str, Any], arguments: recorder.Arguments) -> bool:
    try:
        bound = inspect.signature(kind.__init__).bind(None, *arguments.args, **arguments.kwargs)  # type: ignore[misc]
    except TypeError:
        return False
    passed = dict(list(bound.arguments.items())[1:])
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            passed.update(passed.pop(parameter.name, {}))
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) and parameter.name in passed:
            return False
    return passed.keys() <= config.keys()


def _as_keras_hands_over(api: KerasApi, config: dict[str, Any]) -> dict[str, Any]:
    """The config in the form in which Keras gives it to a ``from_config``: Keras objects serialised, through JSON."""
    try:
        handed: dict[str, Any] = json.loads(json.dumps(api.serialize(config)))
    except (TypeError, ValueError, NotImplementedError):
        return config
    return handed
