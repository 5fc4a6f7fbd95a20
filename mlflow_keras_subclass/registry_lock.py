"""One lock for all that changes the tables in which Keras and Python name classes and modules.

Construction puts the model's classes into Keras' registry, and stored source that runs does the same by its
decorators: at the same time, each would restore what the other put there. A module of stored source is in
``sys.modules`` before it has run to its end, and another thread must not find it there. Imports nothing.

``NAMES_BY_CLASS`` says where each Keras keeps the names under which classes are registered.
"""

from __future__ import annotations

import threading

__all__ = ["NAMES_BY_CLASS", "REGISTRY_LOCK"]

# Private: the public decorators fill these tables, and nothing public takes a name out again.
NAMES_BY_CLASS = {
    "keras": ("keras.src.saving.object_registration", "GLOBAL_CUSTOM_NAMES"),
    "tf_keras": ("tf_keras.src.saving.object_registration", "_GLOBAL_CUSTOM_NAMES"),
}

# A constructor may import a stored module, so one thread may take it again.
REGISTRY_LOCK = threading.RLock()
