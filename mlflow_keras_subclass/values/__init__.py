"""Values as type-tagged JSON: what comes back has the type and content of what went in.

Plain JSON values stand for themselves; everything else is an object with one tag that starts with ``$``:

===================  ================================================================================================
tag                  what it holds
===================  ================================================================================================
``$tuple`` …         ``$set``, ``$frozenset``, ``$deque``: their items
``$dict``            pairs, where keys are no strings, the type is a subclass of dict, or a key starts with ``$``
``$float`` …         ``$bytes`` (base64), ``$complex``, ``$slice``, ``$range``, ``$ellipsis``
``$array`` …         ``$scalar``, ``$tensor``: the name of an array stored with the model's state
``$dtype``           a numpy dtype, ``$tf_dtype`` one of TensorFlow, ``$shape`` a TensorFlow shape
``$path``            a ``pathlib`` path and its class
``$definition``      the key of a class or function of the user's source
``$enum`` …          ``$dataclass``, ``$namedtuple``, ``$instance``: a user's class by key, and its content
``$keras``           Keras' own configuration of one of its own objects, read back in safe mode
``$construct``       a layer or other Keras-based object by its class and recorded constructor arguments
``$from_config``     the same by its class and what its own ``get_config`` returned
``$sequential`` …    ``$functional``: models of Keras' own classes, with the user's layers in them
``$symbol``          a symbolic tensor among the arguments: its number in the ``graph`` that stands beside them
``$object``          the key of an object without data form, in ``objects.cloudpickle``
``$layer``           the path of another layer of the model, among the arguments of one
``$id``, ``$ref``    an object that appears more than once, and its later appearances
===================  ================================================================================================

Imports errors, recorder, tensors and keras_api. No name in the data drives an import: classes come from the shipped
definitions, from Keras' own deserialisation in safe mode, or from ``keras.layers`` by name.
"""

from mlflow_keras_subclass.values.decoder import Decoder
from mlflow_keras_subclass.values.encoder import Encoder, EncodingError
from mlflow_keras_subclass.values.own_config import own_config

__all__ = ["Decoder", "Encoder", "EncodingError", "own_config"]
