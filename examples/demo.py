"""The main job, step by step, on real data: ``make demo``."""

from __future__ import annotations

import mlflow
from elsewhere import STORE, in_fresh_process, require_equal, score, serving, use_local_store
from image_classifier import train

import mlflow_keras_subclass as mks


def main(epochs: int = 10) -> None:
    print("1. Train a subclassed model, DigitClassifier of image_classifier.py, on scikit-learn's digits.")
    use_local_store("demo")
    model, images, accuracy = train(epochs)
    print(f"   Accuracy on {len(images)} images that it never saw: {accuracy:.3f}")

    print("2. Log it: class, weights, constructor arguments, source, commit.")
    with mlflow.start_run():
        mlflow.log_metric("accuracy", accuracy)
        info = mks.log_model(model, name="digits", input_example=images[:2], registered_model_name="digits")
    print(f"   {info.model_uri}, version {info.registered_model_version} of the registered model 'digits'")

    print("3. Load it in a fresh process, where image_classifier cannot be imported, and predict.")
    reloaded = in_fresh_process(info.model_uri, images, source="image_classifier.py")
    expected = model.predict(images, verbose=0)
    require_equal(expected, reloaded.native)
    print(f"   {expected.size} predictions, each equal bit for bit.")

    print("4. Serve it with `mlflow models serve --env-manager local`, and send it images over HTTP.")
    with serving(info.model_uri) as url:
        print(f"   POST {url}")
        answer = score(url, images)
    require_equal(reloaded.pyfunc, answer)
    print(f"   The first ten are {answer[:10].argmax(axis=1).tolist()}; all predictions as before. Server stopped.")

    print("Done. To look at the model, its files and its commit:")
    print(f"   mlflow ui --backend-store-uri sqlite:///{STORE}/mlflow.db")


if __name__ == "__main__":
    main()
