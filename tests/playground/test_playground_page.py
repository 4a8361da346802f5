"""Promises of the playground's page, in a real headless Chromium: what a person sees, and what the page asks for."""

import contextlib
import re

import pytest
from browser import Watched, chromium
from playground_hostile import PIECES, Hostile

from jaxlm.playground.model import Model

SAMPLED = "Pick the sampled one"


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture
def watched(browser):
    one = Watched(browser, viewport={"width": 1200, "height": 900})
    yield one
    one.page.close()


@pytest.fixture(scope="module")
def two(serving):
    with serving("base", "chat") as served:
        yield served


def texts(locator):
    return [text.strip() for text in locator.all_inner_texts()]


def tabs(page):
    """Once the page knows its models."""
    page.get_by_role("tab").first.wait_for()
    return texts(page.get_by_role("tab"))


def check_quiet(watched, served):
    """Nothing went wrong, and nothing left this machine."""
    assert watched.errors == []
    assert watched.dialogs == []
    assert watched.requests
    assert all(url.startswith(served.url) for url in watched.requests)


def begin(page, prompt="The lion"):
    page.get_by_label("Prompt").first.fill(prompt)
    page.get_by_role("button", name="Show what comes next").click()
    page.locator("#panel-next button.bar").first.wait_for()


def test_tokens_are_picked_step_by_step_and_undone(watched, two):
    page = watched.page
    page.goto(two.url)
    assert tabs(page) == ["Next token", "Continue", "Compare"]
    begin(page)
    chips, picked = page.locator(".chip"), page.locator(".chip.picked")
    num_prompt = chips.count()
    wanted = two.event("next_token", "distribution", prompt="The lion", top=10)["distribution"]
    assert num_prompt == len(wanted["ids"])
    rows = page.locator("#panel-next button.bar")
    assert [int(one.get_attribute("data-id")) for one in rows.all()][:10] == [
        one["id"] for one in wanted["top"]
    ]
    page.get_by_role("button", name=SAMPLED).click()
    picked.nth(0).wait_for()
    assert texts(picked.locator("small")) == [str(wanted["sampled"]["id"])]
    rows.nth(2).click()  # any row
    picked.nth(1).wait_for()
    page.get_by_label("How many tokens").fill("3")
    page.get_by_role("button", name="Next", exact=True).click()
    picked.nth(4).wait_for()
    undo = page.get_by_role("button", name="Undo")
    undo.click()  # three at once, as they came
    picked.nth(2).wait_for(state="detached")
    assert picked.count() == 2
    page.locator("#temperature").fill("0")  # the bars follow the settings
    page.locator("#panel-next .bar.out").first.wait_for()
    assert page.locator("#panel-next .bar:not(.out)").count() == 1
    check_quiet(watched, two)


def test_a_chat_streams_stops_and_goes_on(watched, two):
    from playwright.sync_api import TimeoutError as TooLate

    page = watched.page
    page.goto(two.url)
    page.get_by_role("radio", name="chat").click()
    page.get_by_role("tab", name="Chat").click()
    page.locator("#panel-chat").get_by_label("New tokens").fill("1000")
    page.locator("#temperature").fill("3")
    page.get_by_label("Message").fill("Hi <b>there</b>")
    page.keyboard.press("Enter")
    page.locator("#panel-chat .turn.assistant span:not(.visually-hidden)").filter(
        has_text=re.compile(r"\S")
    ).wait_for()
    stop = page.locator("#panel-chat button.stop")
    with contextlib.suppress(TooLate):  # where the answer ended before it could be stopped
        stop.click(timeout=2000)
    stop.wait_for(state="hidden")
    page.get_by_label("Message").fill("Once more")
    page.keyboard.press("Enter")
    page.locator("#panel-chat .turn.assistant").nth(1).wait_for()
    assert "Hi <b>there</b>" in page.locator(".turn.user").first.inner_text()
    page.get_by_role("button", name="Clear").click()
    page.locator(".turn").first.wait_for(state="detached")
    check_quiet(watched, two)


def test_two_checkpoints_stand_side_by_side_and_two_browsers_do_not_disturb_each_other(browser, watched, two):
    other = Watched(browser, viewport={"width": 390, "height": 800})
    for page in (watched.page, other.page):
        page.goto(two.url)
    other.page.get_by_role("tab", name="Compare").click()
    other.page.get_by_role("button", name="Compare", exact=True).click()
    begin(watched.page)
    columns = other.page.locator(".columns > section")
    columns.nth(1).get_by_text("Continuation").wait_for()
    other.page.locator("#panel-compare button.stop").wait_for(state="hidden")
    assert texts(columns.locator("h2")) == ["base, step 3", "chat, step 3"]
    assert columns.nth(0).locator(".bar").count() >= 8
    assert (
        other.page.evaluate("document.documentElement.scrollWidth") <= 390
    )  # a phone need not scroll sideways
    for one in (watched, other):
        check_quiet(one, two)
    other.page.close()


def test_tabs_and_prompt_work_by_keyboard(watched, two):
    page = watched.page
    page.goto(two.url)
    page.get_by_role("tab", name="Next token").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-continue"
    page.locator("#panel-continue textarea").fill("The zoo")
    page.keyboard.press("Control+Enter")
    page.locator("#panel-continue .new").filter(has_text=re.compile(r"\S")).wait_for()
    page.keyboard.press("Home")
    check_quiet(watched, two)


def test_a_prompt_of_a_megabyte_is_one_line_on_the_page(watched, two):
    page = watched.page
    page.goto(two.url)
    page.get_by_label("Prompt").first.evaluate("(box) => { box.value = 'a'.repeat(1 << 20); }")
    page.get_by_role("button", name="Show what comes next").click()
    error = page.get_by_role("alert").locator("visible=true")
    error.wait_for()
    assert error.inner_text() == "The text has 1.0 MB; the playground takes 524 kB at a time: shorten it."
    begin(page)
    check_quiet(watched, two)


def test_labels_are_bars_and_hostile_ones_are_text(watched, serving):
    with serving("hostile") as served:
        page = watched.page
        page.goto(served.url)
        assert tabs(page) == ["Classify"]
        page.get_by_label("Texts").fill("\n".join(PIECES[:2]))
        page.get_by_role("button", name="Classify").click()
        page.locator(".labels").nth(1).wait_for()
        assert sorted(texts(page.locator(".labels").first.locator(".piece"))) == sorted(
            " ".join(one.split()) for one in PIECES
        )
        page.wait_for_timeout(200)
        assert page.locator("main img, main script, main a").count() == 0
        check_quiet(watched, served)


def test_hostile_tokens_and_texts_are_text(watched, runs, model_of, serving):
    """A model that writes nothing but markup."""
    chat = model_of("chat")
    model = Model.__new__(Model)
    model.__dict__.update(chat.__dict__)
    model.tokenizer = Hostile(chat.tokenizer)
    with serving(models=[model]) as served:
        page = watched.page
        page.goto(served.url)
        begin(page, "<img src=http://example.org/p.png onerror=alert(5)>")
        page.get_by_role("button", name="Next", exact=True).click()
        page.locator(".chip.picked").nth(2).wait_for()
        page.get_by_role("tab", name="Chat").click()
        page.get_by_label("System prompt").fill("<script>alert(6)</script>")
        page.get_by_label("Message").fill("<svg onload=alert(7)>")
        page.keyboard.press("Enter")
        page.locator(".turn.assistant").filter(has_text="<img src=http://example.org").wait_for()
        page.locator("#panel-chat button.stop").wait_for(state="hidden")
        page.wait_for_timeout(200)
        assert page.locator("main img, main script, main svg, main a").count() == 0
        check_quiet(watched, served)
