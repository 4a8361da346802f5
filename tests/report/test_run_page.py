"""The page of runs, in a real Chromium: it draws everything, fetches nothing, runs nothing of what a run wrote."""

import json
import shutil
import threading
import urllib.error
import urllib.request

import pytest
from small_log import write_log

from jaxlm.report.events import EventLog
from jaxlm.report.page import embed_json, page_html
from jaxlm.report.page_data import page_data
from jaxlm.report.run_folder import RunFolder, open_runs
from jaxlm.report.serve import LivePage, PageServer
from jaxlm.types import UserError

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028<b>&amp;%{x}"
    "<a href='javascript:alert(3)'>$x$"
)


def read(*paths, **options):
    runs = open_runs([str(path) for path in paths], **options)
    for run in runs:
        run.read()
    return runs


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


class Tab:
    """A tab, and what went wrong in it."""

    def __init__(self, browser, address, **options):
        self.page = browser.new_context(**options).new_page()
        self.errors, self.dialogs, self.requests = [], [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=60_000)

    def clean(self, *addresses):
        assert (self.errors, self.dialogs) == ([], [])
        outside = [url for url in self.requests if not url.startswith(("data:", *addresses))]
        assert outside == []


@pytest.fixture
def open_page(browser, tmp_path):
    def opened(data, **options):
        path = tmp_path / "page.html"
        path.write_bytes(page_html(data))
        return Tab(browser, path.as_uri(), **options)

    return opened


@needs_chromium
def test_what_a_run_wrote_is_text_on_the_page_and_never_code(tmp_path, open_page):
    folder = write_log(
        tmp_path / "run <img src=x onerror=alert(4)>", name="<b onclick=alert(5)>w", text=HOSTILE
    )
    (folder / "config.json").write_text(
        json.dumps(
            {"objective": HOSTILE, "data": {"sources": {"<script>alert(6)</script>": {"path": HOSTILE}}}}
        )
    )
    scores = {"task": "single_label", "labels": [HOSTILE, "b"], "confusion": [[1, 2], [3, 4]], "accuracy": 0.5,
              "data": HOSTILE, "calibration_bins": [{"confidence": 0.5, "accuracy": 0.5, "num_texts": 3}],
              "classes": [{"label": HOSTILE, "precision": 1.0, "recall": 1.0, "f1": 1.0}]}  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(scores))
    (folder / "answers.json").write_text(
        json.dumps({"exact_match": 0.5, "rules": [{"name": HOSTILE}], "data": "q"})
    )
    other = write_log(tmp_path / "other")
    for runs in (read(folder), read(folder, other)):
        tab = open_page(page_data(runs))
        assert tab.page.locator("pre", has_text="<script>alert(1)</script>").count() >= 1
        assert tab.page.locator("main script, main img, main iframe, main b[onclick], main a").count() == 0
        tab.page.select_option("select[aria-label='which keys']", "all")
        tab.page.locator("details").evaluate_all("nodes => nodes.forEach(node => node.open = true)")
        tab.page.locator(".plot").first.hover()
        tab.page.wait_for_timeout(100)
        tab.clean("file://")


@needs_chromium
def test_every_panel_of_a_run_is_there_and_a_nan_is_marked(tmp_path, open_page):
    runs = read(write_log(tmp_path / "mine", end={"seconds": 3.0}))
    tab = open_page(page_data(runs), viewport={"width": 390, "height": 800})
    text = tab.page.inner_text("main")
    for title in ("Training loss", "Held-out loss", "Bits per byte", "Learning rate", "Gradient norm", "Throughput",
                  "Waiting for data", "Where the time went", "Time line", "Tokens and epochs", "Samples"):  # fmt: skip
        assert title in text
    assert "finished" in tab.page.inner_text("header")
    gone = tab.page.evaluate(
        "document.querySelector('.plot').data.filter(trace => trace.name == 'not finite')[0].x"
    )
    assert gone == [7]
    tab.page.click("[data-x=tokens]")
    assert tab.page.evaluate("document.querySelector('.plot').data[0].x.slice(-1)[0]") == 8 * 120
    assert (
        tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    )  # no sideways scrolling on a phone
    tab.clean("file://")


@needs_chromium
def test_a_live_page_shows_what_is_new_without_reloading(tmp_path, browser):
    folder = write_log(tmp_path / "live", num_steps=120)
    live = LivePage(open_runs([str(folder)], may_be_empty=True), lambda runs: page_data(runs, live=True))
    server = PageServer(live)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        tab = Tab(browser, server.address)
        tab.page.evaluate("window.stays = 1")
        with EventLog(folder / "events.jsonl") as log:
            log.write("step", step=121, **{"train/loss": 1.2345, "train/num_tokens": 8.0})
            log.write("end", seconds=3.0)
        tab.page.get_by_text("1.2345").first.wait_for(timeout=20_000)
        assert "finished" in tab.page.inner_text("header")
        assert tab.page.evaluate("window.stays") == 1
        tab.clean(server.address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_server_answers_this_machine_only_and_only_what_is_new(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    live = LivePage(open_runs([str(folder)], may_be_empty=True), lambda runs: page_data(runs, live=True))
    server = PageServer(live)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def get(path, host=None):
        request = urllib.request.Request(server.address + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    try:
        status, body = get("data.json")
        assert (status, json.loads(body)["runs"][0]["state"]) == (200, "waiting")
        version = json.loads(body)["version"]
        assert get(f"data.json?after={version}") == (204, b"")
        write_log(folder)
        live._looked_at = -1e9  # a second has gone by
        status, body = get(f"data.json?after={version}")
        assert (status, json.loads(body)["runs"][0]["summary"]["step"]) == (200, 120)
        version = json.loads(body)["version"]
        with EventLog(folder / "events.jsonl") as log:
            log.write("step", step=121)
        live._looked_at = -1e9
        status, body = get(f"data.json?after={version}")
        assert (status, json.loads(body)["runs"][0]["summary"]["step"]) == (200, 121)
        assert get("", host="evil.example")[0] == 403
        assert get("../../etc/passwd")[0] == 404
        with (folder / "events.jsonl").open("a") as file:
            file.write("nonsense\n")
        live._looked_at = -1e9
        status, body = get("data.json")
        assert status == 500
        assert b"is no JSON object" in body
        with pytest.raises(UserError, match="cannot be used"):
            PageServer(live, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_json_in_a_page_ends_no_element_and_says_the_same():
    value = {HOSTILE: [HOSTILE, "<!--", "]]>", "\u2029", "\ud800", 1.5, None]}
    text = embed_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    page_html({"lone": "\ud800"}).decode()


def test_a_page_holds_no_secret_and_no_megabyte_of_a_sample(tmp_path):
    token = "hf_" + "a1" * 20
    folder = write_log(tmp_path / "run", text="x" * 1_000_000)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "data": {"sources": {"a": {"path": "s3://b/c", "token": "abc12345"}}, "note": token},
                "init_from": "https://me:secret99@host/x?sig=abc",
            }
        )  # fmt: skip
    )
    page = page_html(page_data(read(folder)))
    for secret in (token, "abc12345", "secret99", "sig=abc"):
        assert secret.encode() not in page
    assert len(page) < len(page_html({})) + 200_000
    assert b"996,000 more characters" in page


@pytest.mark.parametrize(
    ("ending", "wanted"),
    [
        ({}, "interrupted"),
        ({"end": {"seconds": 1.0}}, "finished"),
        ({"failed": {"error": "Stopped: stopped by SIGTERM after step 3"}}, "stopped"),
        ({"failed": {"error": "ValueError: no"}}, "failed"),
    ],
)
def test_the_state_of_a_run(tmp_path, ending, wanted):
    folder = write_log(tmp_path / "run", **ending)
    (run,) = read(folder)
    assert run.state()[0] == wanted
    (again,) = read(folder, is_held=lambda path: True)
    assert again.state()[0] == ("running" if not ending else wanted)


def test_scores_are_found_beside_the_run_in_its_log_and_by_name(tmp_path):
    folder = write_log(
        tmp_path / "run", scores={"step": 3, "name": "web", "scores": {"task": "regression", "mse": 1.0}}
    )
    (folder / "a.json").write_text(json.dumps({"exact_match": 0.5}))
    (folder / "broken.json").write_text("{")
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "b.json").write_text(json.dumps({"task": "multi_label", "accuracy": 0.25}))
    (tmp_path / "c.json").write_text(json.dumps({"exact_match": 0.75, "run": str(folder)}))
    other = write_log(tmp_path / "other")
    shown = page_data(read(other, folder), score_files=[str(tmp_path / "c.json")])["runs"]
    assert [len(one["scores"]) for one in shown] == [0, 4]
    with pytest.raises(UserError, match="--scores="):
        RunFolder(folder).scores([str(folder / "broken.json")])
