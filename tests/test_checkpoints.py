"""Checkpoints with real fits: exact resume, what is kept, what is best, and what a run holds of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from stores import local_store

import mlflow_keras_subclass as mks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")
EPOCHS, RESUMED_AT = 2, 1


class Net(keras.Model):
    """Dropout with a seed of its own, batch statistics, and a counter in Python."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(1, activation="sigmoid", dtype="float32")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.norm(self.hidden(x), training=training), training=training))


class Gan(keras.Model):
    """Two networks, two optimizers, and random draws in a train_step of its own."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.generator = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(4)])
        self.discriminator = keras.Sequential(
            [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
        )
        self.seeds = keras.random.SeedGenerator(7)
        self.d_tracker = keras.metrics.Mean(name="d_loss")
        self.g_tracker = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
        super().compile(jit_compile=False)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)

    @property
    def metrics(self) -> list[Any]:
        return [self.d_tracker, self.g_tracker]

    def call(self, noise: Any) -> Any:
        return self.generator(noise)

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        size = tf.shape(data)[0]
        noise = keras.random.normal((size, self.latent), seed=self.seeds)
        with tf.GradientTape() as tape:
            real = self.discriminator(data, training=True)
            fake = self.discriminator(self.generator(noise), training=True)
            d_loss = self.loss_fn(tf.ones_like(real), real) + self.loss_fn(tf.zeros_like(fake), fake)
        self._apply(tape, d_loss, self.discriminator, self.d_optimizer)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise), training=True)
            g_loss = self.loss_fn(tf.ones_like(fake), fake)
        self._apply(tape, g_loss, self.generator, self.g_optimizer)
        self.d_tracker.update_state(d_loss)
        self.g_tracker.update_state(g_loss)
        return {item.name: item.result() for item in self.metrics}

    def _apply(self, tape: Any, loss: Any, part: Any, optimizer: Any) -> None:
        gradients = tape.gradient(loss, part.trainable_variables)
        optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))


def adam_with_schedule() -> Any:
    net = Net(5)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 20, warmup_target=0.1, warmup_steps=3)
    net.compile(keras.optimizers.Adam(schedule), loss="binary_crossentropy", metrics=["accuracy"], jit_compile=False)
    return net


def averaged() -> Any:
    net = Net(5)
    optimizer = keras.optimizers.AdamW(
        0.05, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=3, gradient_accumulation_steps=2, clipnorm=1.0
    )
    net.compile(optimizer, loss="mse", weighted_metrics=["mae"], jit_compile=False)
    return net


def mixed() -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        net = Net(5)
        inner = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)
        scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=4)
        net.compile(scaled, loss="mse", jit_compile=False)
        net(X[:1])
    finally:
        keras.config.set_dtype_policy("float32")
    return net


def gan() -> Any:
    model = Gan(3)
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.02))
    model.discriminator(X[:1])
    model(np.zeros((1, 3), "float32"))
    return model


def fit(model: Any, *, epochs: int = EPOCHS, **options: Any) -> Any:
    data = (X,) if type(model).__name__ == "Gan" else (X, Y)
    return model.fit(*data, batch_size=6, epochs=epochs, shuffle=False, verbose=0, **options)


def state(model: Any) -> list[Any]:
    """Every variable: weights, statistics, seeds, metrics, and those of all optimizers."""
    optimizers = [value for name, value in sorted(vars(model).items()) if "optimizer" in name and value is not None]
    seeds = [layer.seed_generator.state for layer in model._flatten_layers() if hasattr(layer, "seed_generator")]
    found = [*model.variables, *model.metrics_variables, *seeds, *(v for item in optimizers for v in item.variables)]
    return [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in found]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with local_store(tmp_path_factory.mktemp("mlflow"), "checkpoints") as root:
        yield root


@pytest.mark.parametrize("make", [adam_with_schedule, averaged, mixed, gan])
def test_a_resumed_training_is_bit_for_bit_the_whole_one(make: Callable[[], Any]) -> None:
    """And making checkpoints changes nothing in the training that is watched."""
    keras.utils.set_random_seed(3)
    whole = make()
    expected_history = fit(whole).history
    keras.utils.set_random_seed(3)
    watched = make()
    with mlflow.start_run() as run:
        fit(watched, callbacks=[mks.ModelCheckpoint("loss")])

    resumed = mks.load_checkpoint(run.info.run_id, epoch=RESUMED_AT - 1)
    history = fit(resumed, initial_epoch=RESUMED_AT).history

    assert resumed is not whole
    for left, right, other in zip(state(whole), state(watched), state(resumed), strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(left, other)
    assert {key: values[RESUMED_AT:] for key, values in expected_history.items()} == history


class Declining(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives the monitored metric the values that a test needs."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = self.values[epoch]


@pytest.fixture(scope="module")
def watched() -> dict[str, Any]:
    """One training of five epochs; the best is the second."""
    net = adam_with_schedule()
    weights: list[Any] = []
    checkpoint = mks.ModelCheckpoint(
        "score", mode="min", keep_last=2, restore_best=True, registered_model_name="net", tags={"mine": "1"}
    )
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(net.get_weights()))
    with mlflow.start_run() as run:
        fit(net, epochs=5, callbacks=[Declining([3.0, 1.0, 2.0, 4.0, 5.0]), keep, checkpoint])
    return {"run_id": run.info.run_id, "net": net, "weights": weights}


def test_the_newest_and_the_best_are_kept_and_the_rest_deleted_with_its_files(watched: Any, store: Path) -> None:
    kept = mks.find_checkpoints(watched["run_id"])

    assert [item.tags["mlflow_keras_subclass.epoch"] for item in kept] == ["4", "3", "1"]
    assert [item.tags["mlflow_keras_subclass.best"] for item in kept] == ["false", "false", "true"]
    assert {item.tags["mine"] for item in kept} == {"1"}
    stored = {path.parent.parent.name for path in (store / "artifacts").rglob("MLmodel")}
    assert {item.model_id for item in kept} <= stored
    assert len([item for item in stored if item in {m.model_id for m in mks.find_checkpoints(watched["run_id"])}]) == 3


def test_checkpoints_carry_their_metrics_and_come_best_first(watched: Any) -> None:
    best_first = mks.find_checkpoints(watched["run_id"], monitor="score", mode="min")

    assert [{m.key: m.value for m in item.metrics}["score"] for item in best_first] == [1.0, 4.0, 5.0]
    assert {m.step for item in best_first for m in item.metrics if m.key == "loss"} == {1, 3, 4}


@pytest.mark.parametrize(("asked", "epoch"), [({"epoch": 3}, 3), ({"step": 20}, 4), ({"best": True}, 1), ({}, 4)])
def test_load_checkpoint_finds_the_one_asked_for(watched: Any, asked: Any, epoch: int) -> None:
    model = mks.load_checkpoint(watched["run_id"], **asked)

    for left, right in zip(model.get_weights(), watched["weights"][epoch], strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_best_is_restored_and_registered(watched: Any) -> None:
    for left, right in zip(watched["net"].get_weights(), watched["weights"][1], strict=True):
        np.testing.assert_array_equal(left, right)
    best = mks.find_checkpoints(watched["run_id"], monitor="score")[0]
    (version,) = mlflow.MlflowClient().search_model_versions("name='net'")
    assert version.source == best.model_uri


def test_a_checkpoint_that_is_not_there_is_named(watched: Any) -> None:
    with pytest.raises(mks.CheckpointError, match=r"no checkpoint with epoch=2; epochs there: 1 \(step 8\), 3"):
        mks.load_checkpoint(watched["run_id"], epoch=2)
    with pytest.raises(mks.CheckpointError, match="expected one of epoch, step and best, got epoch, best"):
        mks.load_checkpoint(watched["run_id"], epoch=2, best=True)


def test_best_only_by_batches_without_the_optimizer_in_a_run_of_its_own() -> None:
    net = adam_with_schedule()
    checkpoint = mks.ModelCheckpoint("loss", save_best_only=True, save_weights_only=True, save_freq=3)
    fit(net, epochs=2, callbacks=[checkpoint])

    assert mlflow.active_run() is None
    found = mks.find_checkpoints(mlflow.last_active_run().info.run_id)
    steps = [int(item.tags["mlflow_keras_subclass.step"]) for item in found]
    assert steps
    assert all(step % 3 == 0 for step in steps)
    again = mks.load_checkpoint(found[0].source_run_id, best=True)
    assert again.compiled
    assert int(again.optimizer.iterations) == 0
    fit(again, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode: .* got 'best'"),
        ({"save_freq": "batch"}, "save_freq: .* got 'batch'"),
        ({"keep_last": 0}, "keep_last: .* got 0"),
    ],
)
def test_wrong_arguments_are_named(options: Any, message: str) -> None:
    with pytest.raises(mks.CheckpointError, match=message):
        mks.ModelCheckpoint("loss", **options)


def test_callback_can_be_pickled() -> None:
    """Frameworks that train in several processes send it there."""
    sent = mks.ModelCheckpoint("accuracy", keep_last=2, save_freq=3, tags={"mine": "1"})

    received = pickle.loads(pickle.dumps(sent))

    assert type(received) is mks.ModelCheckpoint
    assert vars(received) == vars(sent)


class Unordered(Net):
    """What a set holds has no name to be restored by."""

    def __init__(self) -> None:
        super().__init__(2)
        self.unordered = {keras.metrics.Mean("a"), keras.metrics.Mean("b")}


def test_a_model_that_cannot_be_stored_raises_at_the_first_checkpoint() -> None:
    net = Unordered()
    net.compile("sgd", loss="mse", jit_compile=False)
    net(X)

    with mlflow.start_run(), pytest.raises(mks.CaptureError, match="unordered"):
        fit(net, epochs=1, callbacks=[mks.ModelCheckpoint("loss")])
