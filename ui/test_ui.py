"""What a person sees in MLflow's own pages, in a real headless Chromium; run by ``make test-ui``, not ``make test``.

A screenshot of every page that is looked at is written to ``ui/screenshots``, in light and dark.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import mlflow_keras_subclass as mks

HERE = Path(__file__).parent
SHOTS = HERE / "screenshots"
SECONDS = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server on loopback that also serves artifacts."""
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{root}/mlflow.db",
        "--artifacts-destination",
        str(root / "artifacts"),
    ]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(5 * SECONDS):
        assert process.poll() is None, "the tracking server ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the tracking server did not come up")


@pytest.fixture(scope="module")
def model_page(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a logged model whose class lies in a repository with uncommitted changes."""
    repository = tmp_path_factory.mktemp("shop")
    shutil.copy(HERE / "shop_net.py", repository)
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(repository)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "Two towers"], check=True)
    text = (repository / "shop_net.py").read_text().replace("depth: int = 2)", "depth: int = 3)")
    (repository / "shop_net.py").write_text(text)
    sys.path.insert(0, str(repository))
    from shop_net import TwoTower

    mlflow.set_tracking_uri(server)
    experiment = mlflow.set_experiment("shop")
    keras.utils.set_random_seed(1)
    model = TwoTower()
    rng = np.random.default_rng(0)
    x = {name: rng.random((32, size), "float32") for name, size in (("user", 8), ("item", 5))}
    model.compile("adam", loss="mse", jit_compile=False)
    with mlflow.start_run():
        history = model.fit(x, rng.random((32, 1), "float32"), epochs=2, verbose=0)
        mlflow.log_metric("loss", history.history["loss"][-1])
        info = mks.log_model(model, name="two_tower")
    yield f"{server}/#/experiments/{experiment.experiment_id}/models/{info.model_id}"
    sys.path.remove(str(repository))


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium with a preference for light or dark pages; ``browser.shot(name)`` writes a screenshot."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1300"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    features = [{"name": "prefers-color-scheme", "value": request.param}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    SHOTS.mkdir(exist_ok=True)
    driver.shot = lambda name: driver.save_screenshot(SHOTS / f"{name}-{request.param}.png")
    driver.theme = request.param
    yield driver
    driver.quit()


def wait_for_text(browser: Any, *texts: str) -> str:
    """The page's text, once all of ``texts`` are in it."""

    def there(driver: Any) -> str | bool:
        body = str(driver.find_element(By.TAG_NAME, "body").text)
        return body if all(text in body for text in texts) else False

    return str(WebDriverWait(browser, SECONDS).until(there, f"expected {texts}"))


def open_file(browser: Any, name: str) -> None:
    """Click a file in the artifact tree."""
    xpath = f"//*[normalize-space(text())='{name}']"
    WebDriverWait(browser, SECONDS).until(lambda driver: driver.find_elements(By.XPATH, xpath), name)[0].click()


def test_overview_says_what_the_model_is(browser: Any, model_page: str) -> None:
    browser.get(model_page)

    text = wait_for_text(browser, "TwoTower", "Scores a user against an item", "mks.load_model", "model_class")
    browser.shot("overview")
    for part in ("n_params", "git_commit", "git_dirty", "keras_version", "uncommitted changes", "mlflow models serve"):
        assert part in text, part
    commit = mlflow.get_logged_model(model_page.rpartition("/")[2]).tags["mlflow.source.git.commit"]
    assert commit[:7] in text
    assert "main" in text


def test_model_card_is_rendered(browser: Any, model_page: str) -> None:
    browser.get(f"{model_page}/artifacts")
    open_file(browser, "README.md")

    wait_for_text(browser, "What it takes and returns", "Reproduce", "Files")
    browser.shot("readme")


def test_report_is_shown_in_its_frame(browser: Any, model_page: str) -> None:
    browser.get(f"{model_page}/artifacts")
    open_file(browser, "report.html")
    frame = WebDriverWait(browser, SECONDS).until(lambda driver: driver.find_elements(By.TAG_NAME, "iframe"))[0]
    assert "allow-scripts" in (frame.get_attribute("sandbox") or "")
    browser.switch_to.frame(frame)
    wait_for_text(browser, "Calls", "Layers", "Weights", "Proof", "Git")
    time.sleep(1)
    browser.shot("report-in-mlflow")

    assert browser.find_elements(By.CSS_SELECTOR, "svg rect.box")
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if browser.theme == "light" else "rgb(20, 24, 29)")


def test_report_from_disk_with_everything_open(browser: Any, model_page: str, tmp_path: Path) -> None:
    uri = f"models:/{model_page.rpartition('/')[2]}"
    root = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    browser.get((root / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.set_window_size(1300, min(height + 100, 9000))
    browser.shot("report-open")

    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page itself never scrolls sideways"
    assert browser.get_log("browser") == []
