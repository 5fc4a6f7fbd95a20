"""A rehearsal at log time: the live model is served once as its options say, so that what cannot work is refused now.

It also finds what the options leave open and what is returned, which the signature says. Imports pyfunc and
everything below it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflow_keras_subclass import keras_api, model_dir
from mlflow_keras_subclass.artifacts import fingerprint
from mlflow_keras_subclass.coercion import coerce
from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.model_dir import ModelFacts
from mlflow_keras_subclass.outputs import in_form, returns_logits
from mlflow_keras_subclass.pyfunc import serve
from mlflow_keras_subclass.serving_options import ServingOptions
from mlflow_keras_subclass.specs import InputSpec, Structure, observe

__all__ = ["rehearse"]


def rehearse(
    model: Any, facts: ModelFacts, options: ServingOptions, example: Any
) -> tuple[ServingOptions, Structure | None]:
    """The options with ``from_logits`` filled in if it can be known, and the spec of what is served.

    Raises:
        KerasSubclassError: The options do not fit the model.
        PredictError: There is no such output form of what the model returns.
    """
    if options.from_logits is None:
        options = replace(options, from_logits=_loss_takes_logits(model))
    if options.predict_fn == "call" and options.output == "raw":
        return options, facts.output_spec
    outputs = _served(model, facts, options, example)
    if options.output == "raw":
        return options, observe(outputs, "float32")
    if options.from_logits is None:
        options = replace(options, from_logits=returns_logits(outputs))
    return options, observe(in_form(options.output, outputs, from_logits=options.from_logits), "float32")


def _loss_takes_logits(model: Any) -> bool | None:
    loss = getattr(model, "loss", None)
    if isinstance(loss, str):
        return False if "crossentropy" in loss else None  # Keras' default for a loss that is named
    found = getattr(loss, "from_logits", None)
    return found if isinstance(found, bool) else None


def _served(model: Any, facts: ModelFacts, options: ServingOptions, example: Any) -> Any:
    name, spec = options.predict_fn, _spec(facts)
    if name.startswith("__") or not callable(getattr(model, name, None)):
        raise KerasSubclassError(f"predict_fn: expected the name of a method of {facts.class_name}, got {name!r}.")
    api = keras_api.for_model(model)
    probe = fingerprint.drawn(spec) if example is None else coerce(example, spec)
    try:
        with model_dir.unchanged(api, model):
            return serve(api, model, spec, replace(options, output="raw")).predict(probe)
    except Exception as error:  # The user's method runs here.
        raise KerasSubclassError(
            f"predict_fn: {facts.class_name}.{name} raised {type(error).__name__} on the inputs that call takes (from "
            f"{'a seeded draw' if example is None else 'the input example'}): {error}. Give an input_example "
            "that it takes, or wrap it in a method that takes the inputs of call."
        ) from error


def _spec(facts: ModelFacts) -> InputSpec:
    if facts.input_spec is None:
        raise KerasSubclassError(
            f"model_config: predict_fn and output need to know what {facts.class_name} takes. Call the model once "
            "after mlflow_keras_subclass was imported, or give an input_example."
        )
    return facts.input_spec
