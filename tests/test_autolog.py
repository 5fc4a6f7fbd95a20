"""Autologging of real fits: what a run holds, that training is what it is without, and MLflow's own beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from stores import local_store

import mlflow_keras_subclass as mks
from mlflow_keras_subclass import mlflow_api

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class Net(keras.Model):
    """One layer."""

    def __init__(self, units: int = 1) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x: Any) -> Any:
        return self.dense(x)


class Pair(keras.Model):
    """Takes a dict, and trains in a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.tracker = keras.metrics.Mean(name="own")

    def call(self, inputs: Any) -> Any:
        return self.dense(keras.ops.concatenate([inputs["a"], inputs["b"]], axis=-1))

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.tracker.update_state(loss)
        return {"own": self.tracker.result()}


class Noise(keras.Model):
    """Is given images by fit, and calls itself on noise."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, noise: Any) -> Any:
        return self.dense(noise)

    def train_step(self, data: Any) -> Any:
        return {"loss": keras.ops.mean(self(keras.ops.ones((2, 3)))) + 0.0 * keras.ops.mean(data)}


class Unordered(Net):
    """Cannot be stored: what a set holds has no name."""

    def __init__(self) -> None:
        super().__init__()
        self.unordered = {keras.metrics.Mean("a"), keras.metrics.Mean("b")}


def compiled(model: Any) -> Any:
    model.compile("sgd", loss="mse", jit_compile=False)
    return model


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with local_store(tmp_path_factory.mktemp("mlflow"), "autolog") as root:
        yield root


@pytest.fixture
def on() -> Iterator[Any]:
    """Switches autologging on with the arguments given, and off after the test."""

    def switch(**options: Any) -> None:
        mks.autolog(model_options={"prove": False}, **options)

    yield switch
    mks.autolog(disable=True)
    mlflow.keras.autolog(disable=True)


def runs() -> list[Any]:
    return list(mlflow.search_runs(output_format="list", order_by=["attributes.start_time DESC"]))


def models(run: Any) -> list[Any]:
    return list(mlflow.search_logged_models(filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"))


def history(run: Any, metric: str) -> list[float]:
    return [item.value for item in mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)]


def test_one_fit_is_one_run_with_everything(on: Any) -> None:
    on(log_input_examples=True, registered_model_name="auto", extra_tags={"team": "a"})
    given: list[Any] = [keras.callbacks.EarlyStopping("loss", patience=7)]
    before, count = list(given), len(runs())

    net = compiled(Net())
    got = net.fit(X, Y, epochs=3, batch_size=6, validation_data=(X[:6], Y[:6]), callbacks=given, verbose=0)

    run = runs()[0]
    assert len(runs()) == count + 1
    assert given == before
    assert run.info.status == "FINISHED"
    assert mlflow.active_run() is None
    params = run.data.params
    assert {params[k].lower() for k in ("epochs", "batch_size", "patience", "optimizer_name")} == {"3", "6", "7", "sgd"}
    assert run.data.tags["team"] == "a"
    assert run.data.tags["mlflow.autologging"] == "keras_subclass"
    np.testing.assert_allclose(history(run, "loss"), got.history["loss"])
    assert len(history(run, "validation_loss")) == 3
    assert [item.tags[0].value for item in run.inputs.dataset_inputs] == ["train", "eval"]
    (model,) = models(run)
    assert str(model.status) == "READY"
    assert {item.key for item in model.metrics} >= {"loss", "val_loss", "validation_loss"}
    described = mlflow.models.get_model_info(model.model_uri)
    assert described.signature.inputs.inputs[0].shape == (-1, 4)
    assert described.flavors["keras_subclass"]["model_class"].endswith(":Net")
    example = mlflow.models.Model.load(model.model_uri).load_input_example()
    np.testing.assert_array_equal(example, X[:5])
    np.testing.assert_array_equal(mks.load_model(model.model_uri)(X), net(X))
    assert mlflow.MlflowClient().get_model_version("auto", "1").source == model.model_uri


def generator() -> Iterator[Any]:
    for start in range(0, 12, 3):
        yield X[start : start + 3], Y[start : start + 3]


def dataset() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(12, seed=5).batch(4)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return X[3 * number : 3 * number + 3], Y[3 * number : 3 * number + 3]


@pytest.mark.parametrize(
    ("data", "size"),
    [(generator, "3"), (dataset, "4"), (Batches, "3"), (lambda: dataset().repeat(), "4")],
)
def test_training_is_what_it_is_without(on: Any, data: Any, size: str) -> None:
    """No batch goes missing, no shuffle changes, an endless dataset ends; and the model comes back."""
    options = {"epochs": 1, "steps_per_epoch": 3, "callbacks": None, "verbose": 0, "shuffle": False}
    keras.utils.set_random_seed(1)
    plain = compiled(Net())
    plain.fit(data(), **options)
    on(log_input_examples=True)
    keras.utils.set_random_seed(1)
    logged = compiled(Net())
    logged.fit(data(), **options)

    for left, right in zip(plain.get_weights(), logged.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    run = runs()[0]
    assert run.data.params["batch_size"] == size
    assert len(history(run, "loss")) == 1
    (model,) = models(run)
    assert mlflow.models.Model.load(model.model_uri).load_input_example().shape == (min(5, int(size)), 4)
    np.testing.assert_array_equal(mks.load_model(model.model_uri)(X), logged(X))


def test_several_inputs_and_an_own_train_step(on: Any) -> None:
    on(log_input_examples=True)
    pair = compiled(Pair())

    pair.fit({"a": X, "b": X}, Y, epochs=1, verbose=0)

    (model,) = models(runs()[0])
    assert mlflow.models.get_model_info(model.model_uri).signature.inputs.input_names() == ["a", "b"]
    assert history(runs()[0], "own")
    np.testing.assert_array_equal(mks.load_model(model.model_uri)({"a": X, "b": X}), pair({"a": X, "b": X}))


def test_data_that_is_no_input_of_the_model_is_no_example(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    on(log_input_examples=True)

    compiled(Noise()).fit(np.ones((4, 8, 8, 1), "float32"), epochs=1, verbose=0)

    (model,) = models(runs()[0])
    assert str(model.status) == "READY"
    assert mlflow.models.Model.load(model.model_uri).saved_input_example_info is None


def test_functional_and_sequential_models_go_to_mlflow_keras(on: Any) -> None:
    on()
    compiled(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])).fit(X, Y, epochs=1, verbose=0)

    (model,) = models(runs()[0])
    assert set(mlflow.models.get_model_info(model.model_uri).flavors) == {"keras", "python_function"}


@pytest.mark.parametrize("first", ["mlflow", "ours"])
def test_beside_mlflow_keras_nothing_is_logged_twice_or_lost(on: Any, first: str) -> None:
    switches = [lambda: mlflow.keras.autolog(log_models=False), on]
    for switch in switches if first == "mlflow" else reversed(switches):
        switch()
    count = len(runs())

    compiled(Net()).fit(X, Y, epochs=2, verbose=0)

    assert len(runs()) == count + 1
    assert len(history(runs()[0], "loss")) == 2
    (model,) = models(runs()[0])
    assert "keras_subclass" in mlflow.models.get_model_info(model.model_uri).flavors
    mks.autolog(disable=True)
    compiled(Net()).fit(X, Y, epochs=1, verbose=0)
    assert len(runs()) == count + 2, "mlflow.keras.autolog works on when ours is off"


@pytest.mark.parametrize("every", [None, 2])
def test_metrics_have_a_value_for_each_epoch_or_every_so_many_steps(on: Any, every: int | None) -> None:
    on(log_every_epoch=every is None, log_every_n_steps=every, log_models=False)

    compiled(Net()).fit(X, Y, epochs=3, batch_size=3, verbose=0)

    steps = [item.step for item in mlflow.MlflowClient().get_metric_history(runs()[0].info.run_id, "loss")]
    assert steps == ([0, 1, 2] if every is None else [2, 4, 6, 8, 10, 12])


def test_models_and_datasets_can_be_left_out(on: Any) -> None:
    on(log_models=False, log_datasets=False)

    compiled(Net()).fit(X, Y, epochs=1, validation_data=(X, Y), verbose=0)

    run = runs()[0]
    assert len(history(run, "loss")) == 1
    assert models(run) == []
    assert run.inputs.dataset_inputs == []


def test_a_run_of_the_user_is_used_and_stays_open(on: Any) -> None:
    on(log_models=False)
    count = len(runs())

    with mlflow.start_run() as run:
        compiled(Net()).fit(X, Y, epochs=1, verbose=0)
        assert mlflow.active_run().info.run_id == run.info.run_id

    assert len(runs()) == count + 1
    assert len(history(run, "loss")) == 1


def test_a_callback_of_mlflow_that_was_given_logs_alone(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow's own autologging raises here; training must not end for what is logged twice."""
    on(log_models=False)

    with caplog.at_level(logging.WARNING, "mlflow_keras_subclass"):
        compiled(Net()).fit(X, Y, epochs=2, verbose=0, callbacks=[mlflow.keras.MlflowCallback()])

    assert len(history(runs()[0], "loss")) == 2
    assert "fit was given an MlflowCallback" in caplog.text


def test_early_stopping_is_told(on: Any) -> None:
    """The loss falls, which is worse in this mode: stopped in the second epoch, the first one is restored."""
    on(log_models=False)
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)

    compiled(Net()).fit(X, Y, epochs=5, verbose=0, callbacks=[stopping])

    run = runs()[0]
    assert (run.data.params["patience"], run.data.params["restore_best_weights"]) == ("1", "True")
    assert (run.data.metrics["stopped_epoch"], run.data.metrics["restored_epoch"]) == (1, 0)
    assert len(history(run, "loss")) == 2


class Scores(keras.callbacks.Callback):  # type: ignore[misc]
    """The best epoch of three is the second."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = (1.0, 3.0, 2.0)[epoch]


def checkpoints(run: Any) -> list[Any]:
    return [int(item.tags["mlflow_keras_subclass.epoch"]) for item in mks.find_checkpoints(run.info.run_id)]


@pytest.mark.parametrize(("best_only", "kept"), [(True, [1]), (False, [2, 1, 0])])
def test_checkpoints_are_logged_beside_the_model(on: Any, best_only: bool, kept: list[int]) -> None:
    on(
        checkpoint=True,
        checkpoint_monitor="score",
        checkpoint_mode="max",
        checkpoint_save_best_only=best_only,
        checkpoint_save_weights_only=True,
    )
    net, weights = compiled(Net()), []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(net.get_weights()))

    net.fit(X, Y, epochs=3, verbose=0, callbacks=[Scores(), keep])

    run = runs()[0]
    assert checkpoints(run) == kept
    assert [item.name for item in models(run)].count("model") == 1
    best = mks.load_checkpoint(run.info.run_id, best=True)
    assert int(best.optimizer.iterations) == 0, "weights only"
    for left, right in zip(best.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(left, right)
    (found, *_) = mks.find_checkpoints(run.info.run_id, monitor="score", mode="max")
    assert {item.key: item.value for item in found.metrics}["score"] == 3.0


def test_a_checkpoint_callback_that_was_given_takes_the_place(on: Any) -> None:
    on(checkpoint=True, checkpoint_save_best_only=False, log_models=False)
    given = mks.ModelCheckpoint("loss", keep_last=1, prove=False, name="mine")

    compiled(Net()).fit(X, Y, epochs=2, verbose=0, callbacks=[given])

    assert {item.name for item in models(runs()[0])} == {"mine"}


def test_a_list_object_of_keras_gets_checkpoints_too(on: Any) -> None:
    on(checkpoint=True, checkpoint_save_best_only=False, checkpoint_save_freq=2, log_models=False)
    net = compiled(Net())
    given = keras.callbacks.CallbackList([keras.callbacks.History()], model=net, epochs=1, steps=4)

    net.fit(X, Y, epochs=1, batch_size=3, verbose=0, callbacks=given)

    found = mks.find_checkpoints(runs()[0].info.run_id)
    assert [item.tags["mlflow_keras_subclass.step"] for item in found] == ["4", "2"]
    assert [type(item).__name__ for item in given.callbacks] == ["History"]


def test_a_checkpoint_that_cannot_be_logged_does_not_end_training(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    on(checkpoint=True, checkpoint_save_best_only=False, log_models=False)
    net = compiled(Unordered())
    net(X)

    with caplog.at_level(logging.WARNING, "mlflow_keras_subclass"):
        got = net.fit(X, Y, epochs=3, verbose=0)

    assert len(got.history["loss"]) == 3
    assert caplog.text.count("Training goes on without checkpoints") == 1
    assert models(runs()[0]) == []


def test_wrong_arguments_are_named_before_any_fit() -> None:
    with pytest.raises(mks.CheckpointError, match=r"mode: .* got 'best'"):
        mks.autolog(checkpoint_mode="best")
    with pytest.raises(mks.CheckpointError, match=r"save_freq: .* got 0"):
        mks.autolog(checkpoint_save_freq=0)
    assert mlflow_api.autologging_config("keras_subclass") is None


def test_switched_off_fit_is_that_of_keras(on: Any) -> None:
    before = keras.Model.fit
    on()
    assert keras.Model.fit is not before
    mks.autolog(disable=True)
    count = len(runs())

    compiled(Net()).fit(X, Y, epochs=1, verbose=0)

    assert len(runs()) == count


def test_an_error_in_logging_is_a_warning(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    on(log_datasets=False)
    net = compiled(Unordered())
    net(X)

    with caplog.at_level(logging.WARNING, logger="mlflow"), mlflow.start_run():
        logging.getLogger("mlflow").addHandler(caplog.handler)
        got = net.fit(X, Y, epochs=1, verbose=0)
        logging.getLogger("mlflow").removeHandler(caplog.handler)

    assert got.history["loss"]
    assert any("unordered" in record.getMessage() for record in caplog.records)


def test_a_fit_that_fails_fails_as_it_would_and_leaves_no_run_open(on: Any) -> None:
    on()

    with pytest.raises(ValueError, match=r"(?s).*"):
        compiled(Net()).fit(X, Y[:5], epochs=1, verbose=0)

    assert mlflow.active_run() is None
    assert runs()[0].info.status == "FAILED"
    assert [str(item.status) for item in models(runs()[0])] == ["FAILED"]


def test_the_private_names_of_mlflow_are_where_they_were() -> None:
    """A new MLflow that moved one shows here."""
    for name in mlflow_api.__all__:
        assert callable(getattr(mlflow_api, name)), name
    assert mlflow_api.autologging_config("keras_subclass") is None
