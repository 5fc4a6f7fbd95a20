"""The class definition: what the user wrote, stored so that it comes back in a process without the user's files.

Every model is stored twice. ``class.cloudpickle`` holds the live classes by value, bound to one Python version;
``source/`` holds the text of all modules of the user that they need, byte for byte, for people, for git, for
TensorFlow's autograph (which executes text) and as the route that survives a change of Python. The record says which
route is taken, and for every other why it is closed, if it is.

``origins`` tells whose code something is; ``closure`` finds the modules; ``pickler`` and ``objects`` write by value,
``runtime`` puts together again; ``namespace`` and ``imports`` run stored text under private names; ``fidelity`` tells
whether text and live code agree; ``global_values`` are what code reads from outside of the model; ``diagnosis`` words
refusals; ``backends`` finds the lines that tie a class to one backend. Must not import Keras; imports errors, files,
pickles and the file names of the manifest.
"""

from __future__ import annotations

from mlflow_keras_subclass.artifacts.class_definition.backends import last_line, lines_asking
from mlflow_keras_subclass.artifacts.class_definition.origins import is_user_defined
from mlflow_keras_subclass.artifacts.class_definition.reading import choose_route, read
from mlflow_keras_subclass.artifacts.class_definition.records import (
    DefinitionRecord,
    Definitions,
    SourceModule,
    Written,
)
from mlflow_keras_subclass.artifacts.class_definition.writing import Survey, survey, write

__all__ = [
    "DefinitionRecord",
    "Definitions",
    "SourceModule",
    "Survey",
    "Written",
    "choose_route",
    "is_user_defined",
    "last_line",
    "lines_asking",
    "read",
    "survey",
    "write",
]
