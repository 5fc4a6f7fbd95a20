"""Trains under a distribution and saves: ``distributed_runner.py KIND FOLDER``, a process of its own for its devices.

``mirrored`` and ``workers`` are ``tf.distribute``, ``data`` and ``model`` are ``keras.distribution`` on JAX, and
``load`` loads ``FOLDER/model`` where nothing is distributed. What the model predicts goes to ``FOLDER/KIND.npz``.
"""

import json
import sys
from pathlib import Path

import keras
import mlflow
import numpy as np

import mlflow_keras_subclass as mks

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


class Net(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.hidden = keras.layers.Dense(width, activation="relu", name="hidden")
        self.norm = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.norm(self.hidden(x), training=training))


def trained():
    keras.utils.set_random_seed(1)
    model = Net(16)
    model.compile("adam", loss="mse", metrics=["mae"])
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    return model


def note(model, **facts):
    iterations = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    kinds = {type(variable.value).__name__ for variable in [*model.variables, *model.optimizer.variables]}
    devices = {len(v.value.sharding.device_set) for v in model.variables if hasattr(v.value, "sharding")}
    predictions = np.asarray(model(X))
    facts = {"iterations": iterations, "kinds": sorted(kinds), "devices": sorted(devices), **facts}
    np.savez(FOLDER / f"{KIND}.npz", predictions=predictions, facts=json.dumps(facts))


def mirrored():
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = trained()
        mks.save_model(model, FOLDER / "model")
    note(model, replicas=strategy.num_replicas_in_sync)


def workers():
    """One of two processes, each with the whole model: ``TF_CONFIG`` says which. All of them train, the chief logs."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = Net(16)
        model(X[:2])
        model.compile("adam", loss="mse")
        model.optimizer.build(model.trainable_variables)

    # Not fit, which Keras 3.15 cannot run across workers: it takes PerReplica values for arrays.
    @tf.function
    def step(x, y):
        def one(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - y) ** 2) / strategy.num_replicas_in_sync
            weights = [variable.value for variable in model.trainable_variables]
            model.optimizer.apply(tape.gradient(loss, weights), model.trainable_variables)

        strategy.run(one, args=(x, y))

    own = slice(strategy.cluster_resolver.task_id, None, 2)
    for _ in range(8):
        step(tf.constant(X[own]), tf.constant(Y[own]))
    if strategy.cluster_resolver.task_id == 0:
        mlflow.set_tracking_uri(f"sqlite:///{FOLDER / 'mlflow.db'}")
        mlflow.create_experiment("workers", artifact_location=(FOLDER / "artifacts").as_uri())
        mlflow.set_experiment("workers")
        uri = mks.log_model(model, name="net").model_uri
        note(model, replicas=strategy.num_replicas_in_sync, uri=uri)


def data():
    devices = keras.distribution.list_devices("cpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    model = trained()
    mks.save_model(model, FOLDER / "model")
    note(model)


def model():
    devices = keras.distribution.list_devices("cpu")
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices=devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*hidden.*kernel"] = (None, "model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    model = trained()
    mks.save_model(model, FOLDER / "model")
    note(model)


def load():
    loaded = mks.load_model(FOLDER / "model")
    pyfunc = mlflow.pyfunc.load_model(str(FOLDER / "model")).predict(X)
    np.testing.assert_allclose(pyfunc, np.asarray(loaded(X)), rtol=1e-5, atol=1e-6)
    note(loaded)
    loaded.fit(X, Y, batch_size=16, verbose=0)


if __name__ == "__main__":
    {"mirrored": mirrored, "workers": workers, "data": data, "model": model, "load": load}[KIND]()
