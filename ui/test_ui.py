"""What a person sees in MLflow's own pages, in a real headless Chromium; run by ``make test-ui``, not ``make test``.

A screenshot of every page that is looked at is written to ``ui/screenshots``, in light and dark.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from servers import tracking

import mlflow_keras_subclass as mks

HERE = Path(__file__).parent
SHOTS = HERE / "screenshots"
SECONDS = 120
# Over this, MLflow's page shows text without colours; over ten times this, nothing.
PREVIEW_BYTES = 5 * 2**20
GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--window-size=1500,1300",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A logged model: the addresses of its page and of its run's, and its ID."""

    page: str
    run: str
    model_id: str


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an experiment on a tracking server that also serves artifacts."""
    with tracking(tmp_path_factory.mktemp("server")) as url:
        mlflow.set_tracking_uri(url)
        yield f"{url}/#/experiments/{mlflow.set_experiment('shop').experiment_id}"


def log(experiment: str, model: Any, name: str, **options: Any) -> Logged:
    """Log into a run that has a file of its own, which hides the model on the run's page."""
    with mlflow.start_run() as run:
        mlflow.log_text("Of the run itself.", "notes.txt")
        info = mks.log_model(model, name=name, log_run_artifacts="summary", **options)
    return Logged(
        page=f"{experiment}/models/{info.model_id}",
        run=f"{experiment}/runs/{run.info.run_id}",
        model_id=info.model_id,
    )


@pytest.fixture(scope="module")
def shop(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """A model whose class lies in a repository with uncommitted changes."""
    repository = tmp_path_factory.mktemp("shop")
    shutil.copy(HERE / "shop_net.py", repository)
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(repository)]
    subprocess.run([*git, "init", "-q", "-b", "trunk"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "Two towers"], check=True)
    text = (repository / "shop_net.py").read_text().replace("depth: int = 2)", "depth: int = 3)")
    (repository / "shop_net.py").write_text(text)
    sys.path.insert(0, str(repository))
    from shop_net import TwoTower

    keras.utils.set_random_seed(1)
    model = TwoTower()
    rng = np.random.default_rng(0)
    x = {name: rng.random((32, size), "float32") for name, size in (("user", 8), ("item", 5))}
    model.compile("adam", loss="mse", jit_compile=False)
    model.fit(x, rng.random((32, 1), "float32"), epochs=2, verbose=0)
    yield log(experiment, model, "two_tower")
    sys.path.remove(str(repository))


@pytest.fixture(scope="module")
def big(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """A model of a thousand layers; without a proof, which takes minutes and is not what is looked at."""
    folder = tmp_path_factory.mktemp("big")
    shutil.copy(HERE / "big_net.py", folder)
    sys.path.insert(0, str(folder))
    from big_net import BigNet

    model = BigNet()
    model(np.zeros((2, 8), "float32"))
    yield log(experiment, model, "big", prove=False, provenance="off")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module", params=["light", "dark"])
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Chromium with a preference for light or dark pages; ``chromium.shot(name)`` writes a screenshot."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in FLAGS:
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    features = [{"name": "prefers-color-scheme", "value": request.param}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    SHOTS.mkdir(exist_ok=True)
    driver.shot = lambda name: driver.save_screenshot(SHOTS / f"{name}-{request.param}.png")
    driver.theme = request.param
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any) -> Any:
    """The same with an empty page, in the window's usual size."""
    chromium.switch_to.default_content()
    chromium.get("about:blank")
    chromium.set_window_size(1500, 1300)
    chromium.get_log("browser")
    return chromium


def wait_for_text(browser: Any, *texts: str) -> str:
    """The page's text, once all of ``texts`` are in it."""

    def there(driver: Any) -> str | bool:
        body = str(driver.find_element(By.TAG_NAME, "body").text)
        return body if all(text in body for text in texts) else False

    return str(WebDriverWait(browser, SECONDS).until(there, f"expected {texts}"))


def wait_for(browser: Any, selector: str) -> Any:
    """The first element that is there for a CSS selector."""
    return WebDriverWait(browser, SECONDS).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, selector))[0]


def open_file(browser: Any, path: str) -> None:
    """Click through the folders of ``path`` in the artifact tree, then on the file."""

    def click(driver: Any, name: str) -> bool:
        # A folder unfolds in steps: what is in it is there before it can be clicked.
        found = driver.find_elements(By.XPATH, f"//*[normalize-space(text())='{name}']")
        shown = [item for item in found if item.is_displayed()]
        if shown:
            shown[0].click()
        return bool(shown)

    errors = (ElementClickInterceptedException, ElementNotInteractableException, StaleElementReferenceException)
    for name in path.split("/"):
        patient = WebDriverWait(browser, SECONDS, ignored_exceptions=errors)
        patient.until(functools.partial(click, name=name), f"no {name} to click")
    wait_for_text(browser, "Path: ", path.rpartition("/")[2])


def enter_report(browser: Any) -> None:
    """Go into the frame in which MLflow shows ``report.html``."""
    frame = wait_for(browser, "iframe#html")
    assert frame.get_attribute("sandbox") == "allow-scripts", "the frame that the page is made for"
    browser.switch_to.frame(frame)
    wait_for_text(browser, "Environment", "requirements.txt")


def shoot_all(browser: Any, name: str) -> None:
    """Screenshots from the top of the page in the frame to its end."""
    height, seen = browser.execute_script("return [document.documentElement.scrollHeight, innerHeight]")
    for number in range(-(-height // (seen - 40))):
        browser.execute_script(f"scrollTo(0, {number * (seen - 40)})")
        time.sleep(0.2)
        browser.shot(f"{name}-{number}")


def style_of(browser: Any, selector: str, name: str) -> str:
    return str(browser.execute_script(f"return getComputedStyle(document.querySelector('{selector}')).{name}"))


def is_wide(browser: Any) -> bool:
    """Whether the page as a whole scrolls sideways."""
    root = "document.documentElement"
    return bool(browser.execute_script(f"return {root}.scrollWidth > {root}.clientWidth"))


# --- the logged model


def test_overview_says_what_the_model_is(browser: Any, shop: Logged) -> None:
    browser.get(shop.page)
    text = wait_for_text(browser, "TwoTower: Scores a user against an item by the product of two towers.", "n_params")
    browser.shot("overview")

    tags = mlflow.get_logged_model(shop.model_id).tags
    commit = tags["mlflow.source.git.commit"]
    for part in (
        "class: shop_net:TwoTower",
        "parameters: 1,409 (1,409 trainable, 0 not)",
        f"commit: {commit} on trunk, with uncommitted changes",
        f'mks.load_model("models:/{shop.model_id}")',
        f"mlflow models serve -m models:/{shop.model_id}",
    ):
        assert part in text, part
    lines = text.splitlines()
    parameters = lines[lines.index("Parameters (5)") :]
    for name, value in {
        "model_class": "shop_net:TwoTower",
        "n_params": "1409",
        "git_commit": commit,
        "git_dirty": "true",
        "keras_version": keras.__version__,
    }.items():
        assert parameters[parameters.index(name) + 1] == value
    about = lines[lines.index("Logged from") :]
    assert {"trunk", commit[:7]} <= set(about[:6]), "the chips of branch and commit"


def test_artifacts_begin_with_what_is_to_be_read(browser: Any, shop: Logged) -> None:
    """After the folders and MLmodel, which MLflow needs."""
    browser.get(f"{shop.page}/artifacts")
    lines = wait_for_text(browser, "requirements.txt").splitlines()

    files = lines[lines.index("MLmodel") : lines.index("requirements.txt") + 1]
    assert files == ["MLmodel", "README.md", "conda.yaml", "python_env.yaml", "report.html", "requirements.txt"]


def test_model_card_is_rendered(browser: Any, shop: Logged) -> None:
    browser.get(f"{shop.page}/artifacts")
    open_file(browser, "README.md")
    text = wait_for_text(browser, "What it takes and returns", "Load", "Serve", "Reproduce", "Files", "Trust")
    browser.shot("readme")

    assert wait_for(browser, "h1").text == "TwoTower"
    assert "takes\nuser\n(None, 8)\nfloat32" in text, "a table, not its markup"
    assert "keras_subclass/weights.csv\nevery variable: path, shape" in text


def test_report_is_shown_in_its_frame(browser: Any, shop: Logged) -> None:
    browser.get(f"{shop.page}/artifacts")
    open_file(browser, "report.html")
    enter_report(browser)
    shoot_all(browser, "report-in-mlflow")
    text = wait_for_text(browser, "Calls")

    headings = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "h2")]
    assert headings == ["Calls", "Layers", "Weights", "Proof", "Configuration", "Source", "Git", "Environment"]
    for part in (
        "user_tower.blocks[2] Dense (·, 16) · 272 parameters",
        "user_tower calls 4 layers, and so does item_tower",
        "16 × 16 float32",
        "Rebuilt in an isolated process without the user's modules",
        "uncommitted changes yes",
        "shop_net.py modified",
        "+    def __init__(self, units: int = 16, depth: int = 3) -> None:",
        f"Keras {keras.__version__}",
    ):
        assert part in text, part
    boxes = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "svg g") if item.text]
    assert boxes[:3] == ["input", "user_tower\nTower (·, 16)", "item_tower\nTower (·, 16)"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg path.bar")) > 10
    assert style_of(browser, "body", "backgroundColor") == GROUND[browser.theme]
    grounds = {style_of(browser, selector, "backgroundColor") for selector in ("pre", "pre .gd", "pre .gi")}
    assert len(grounds) == 3, "lines that went and came have a ground of their own"
    assert style_of(browser, "pre .k", "color") != style_of(browser, "pre", "color")
    assert not is_wide(browser)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_report_follows_the_theme_chosen_in_mlflow(browser: Any, shop: Logged) -> None:
    """MLflow's switch to dark, also where the machine prefers light."""
    browser.get(f"{shop.page}/artifacts")
    wait_for_text(browser, "report.html")
    browser.execute_script("localStorage.setItem('_mlflow_dark_mode_toggle_enabled', 'true')")
    try:
        browser.refresh()
        open_file(browser, "report.html")
        enter_report(browser)
        assert style_of(browser, "body", "backgroundColor") == GROUND["dark"]
    finally:
        browser.switch_to.default_content()
        browser.execute_script("localStorage.removeItem('_mlflow_dark_mode_toggle_enabled')")


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("weights.csv", ("Previewing the first 19 rows", "head.kernel", "16x1")),
        ("git.json", ('"branch": "trunk"', '"dirty": true')),
        ("uncommitted.diff.txt", ("+    def __init__(self, units: int = 16, depth: int = 3)",)),
        ("config.json", ('"definition": "shop_net:TwoTower"',)),
        ("source/shop_net.py", ("class TwoTower(keras.Model):",)),
    ],
)
def test_files_of_the_model_can_be_read(browser: Any, shop: Logged, name: str, texts: tuple[str, ...]) -> None:
    browser.get(f"{shop.page}/artifacts")
    open_file(browser, f"keras_subclass/{name}")
    wait_for_text(browser, *texts)
    browser.shot(f"file-{Path(name).stem}")


# --- the run


def test_page_of_the_run_has_the_summary(browser: Any, shop: Logged) -> None:
    browser.get(f"{shop.run}/artifacts")
    text = wait_for_text(browser, "notes.txt", "two_tower_summary")
    assert "MLmodel" not in text, "the run's own file hides the model"

    open_file(browser, "two_tower_summary/README.md")
    wait_for_text(
        browser,
        f"A copy for reading. The model itself, with its weights and all other files, is models:/{shop.model_id}",
    )
    browser.shot("run-readme")
    open_file(browser, "report.html")
    enter_report(browser)
    browser.shot("run-report")
    assert "Scores a user against an item" in wait_for_text(browser, "TwoTower")


# --- the report by itself


def test_report_from_disk_with_everything_open(browser: Any, shop: Logged, tmp_path: Path) -> None:
    root = Path(mlflow.artifacts.download_artifacts(f"models:/{shop.model_id}", dst_path=str(tmp_path)))
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        browser.get((root / "report.html").as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.set_window_size(1300, min(height + 100, 9000))
        browser.shot("report-open")
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})

    wait_for_text(browser, "user_tower.norm.gamma", "class Tower(keras.layers.Layer):", '"compile"')
    assert not is_wide(browser)
    assert browser.get_log("browser") == []


class Strict(http.server.SimpleHTTPRequestHandler):
    """Serves pages in the way of the strictest host: no script, no network, no origin."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "sandbox; default-src 'none'; style-src 'unsafe-inline'")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_report_needs_no_script(browser: Any, shop: Logged, tmp_path: Path) -> None:
    root = mlflow.artifacts.download_artifacts(f"models:/{shop.model_id}", dst_path=str(tmp_path))
    handler = functools.partial(Strict, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/report.html")
        # As the browser paints it: scripts, the driver's among them, cannot run in such a page.
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        browser.shot("report-sandboxed")
        server.shutdown()

    names = {node.get("name", {}).get("value") for node in tree}
    assert {"Calls", "Layers", "user_tower", "item_tower", "What was not committed"} <= names


# --- a big model


def test_report_of_a_big_model_is_closed(browser: Any, big: Logged) -> None:
    browser.get(f"{big.page}/artifacts")
    open_file(browser, "report.html")
    enter_report(browser)
    shoot_all(browser, "big-report")
    text = wait_for_text(browser, "Calls")

    assert "The model calls 51 layers" in text
    assert "stacks[0].blocks[0] calls 3 layers, and so do 249 more, in the same way" in text
    assert re.search(r"stacks\[49\] 40 variables · [\d,]+ parameters", text)
    assert "stacks[0].blocks[0].up.kernel" not in text, "what is closed is not shown"
    assert browser.execute_script("return document.documentElement.scrollHeight") < 8000
    browser.execute_script("document.querySelectorAll('summary').forEach(item => item.click())")
    wait_for_text(browser, "stacks[0].blocks[0].up.kernel", "stacks[49].blocks[4].down")
    assert not is_wide(browser)
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(1)
    browser.shot("big-report-open")


def test_files_of_a_big_model_are_within_the_previews_limits(browser: Any, big: Logged, tmp_path: Path) -> None:
    root = Path(mlflow.artifacts.download_artifacts(f"models:/{big.model_id}", dst_path=str(tmp_path)))
    for path in root.rglob("*.*"):
        if path.suffix in (".csv", ".html", ".json", ".md", ".py", ".txt"):
            assert path.stat().st_size < PREVIEW_BYTES, path.name
    browser.get(f"{big.page}/artifacts")
    open_file(browser, "keras_subclass/weights.csv")
    wait_for_text(browser, "Previewing the first", "stacks[0].blocks[0]")
    browser.shot("big-weights")
    open_file(browser, "structure.json")
    wait_for_text(browser, '"attributes": {', "stacks[0].blocks[0]")
    browser.shot("big-structure")
