"""Promises of the playground over HTTP: the numbers of the command line, strangers kept out, one line for mistakes."""

import gc
import json
import time

import jax
import pytest
from real_processes import wait_until

from jaxlm import run as run_lib
from jaxlm.data.chat import saved_chat
from jaxlm.infer.chat import Conversation
from jaxlm.infer.sample import compiled_steps
from jaxlm.playground import model as model_lib
from jaxlm.playground import worker as worker_lib

PROMPT = "The lion is in the"


@pytest.fixture(scope="module")
def lms(serving):
    with serving("base", "chars", "chat") as served:
        yield served


@pytest.fixture(scope="module")
def labels(serving):
    with serving("labels") as served:
        yield served


@pytest.mark.parametrize(
    ("number", "kind", "settings"),
    [
        (0, "base", {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 7}),
        (1, "chars", {"temperature": 0.0}),
    ],
)
def test_the_numbers_are_those_of_next_token(jaxlm, lms, runs, number, kind, settings):
    words = ["zoo", "lion"]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    code, out, err = jaxlm(
        "next-token",
        f"--run={runs[kind]}",
        f"--prompt={PROMPT}",
        "--json",
        f"--candidates={','.join(words)}",
        *flags,
    )
    assert (code, err) == (0, "")
    found = lms.event("next_token", "distribution", model=number, prompt=PROMPT, candidates=words, **settings)
    assert found["distribution"] == json.loads(out)


def test_picking_what_is_sampled_writes_the_text_of_generate(jaxlm, lms, runs):
    sampling = {"seed": 3, "temperature": 0.8}
    flags = (f"--run={runs['base']}", f"--prompt={PROMPT}", "--json", "--seed=3", "--temperature=0.8")
    generated = json.loads(jaxlm("generate", *flags, "--max-new-tokens=6")[1])
    question = {"prompt": PROMPT, **sampling}
    picked = []
    for _ in generated["tokens"]:
        found = lms.event("next_token", "distribution", picked=picked, **question)["distribution"]
        picked.append(found["sampled"]["id"])
    assert picked == generated["tokens"]
    for cut in (0, 2):  # all at once, and from where picking has come to
        done = lms.event("continue_text", "done", picked=picked[:cut], max_new_tokens=6 - cut, **question)
        assert [token["id"] for token in done["tokens"]] == generated["tokens"][cut:]
        assert [token["logprob"] for token in done["tokens"]] == pytest.approx(
            generated["logprobs"][cut:], abs=1e-3
        )
    assert lms.event("continue_text", "done", max_new_tokens=6, **question)["text"] == generated["text"]


def test_a_row_is_picked_whatever_the_tokenizer_would_have_cut(lms, model_of):
    tokenizer = model_of("base").tokenizer
    letters = [token for letter in "zoo" for token in tokenizer.encode(letter)]
    found = lms.event("next_token", "distribution", model=0, prompt="a ", picked=letters, candidates=["is"])
    one = found["distribution"]
    assert one["ids"][-3:] == letters
    assert one["prompt"] == "a zoo"
    assert (one["candidates"][0]["word"], one["candidates"][0]["merged"]) == ("is", False)


def test_a_chat_is_that_of_jaxlm_chat(lms, runs, model_of):
    model = model_of("chat")
    conversation = Conversation(
        model.lm, model.params, model.tokenizer, saved_chat(runs["chat"], model.tokenizer), seed=5,
        context_tokens=model.trained_tokens, max_new_tokens=12, system="Be brief.", slot_sizes=model_lib.SLOTS,
    )  # fmt: skip
    turns = []
    for text in ("Hi", "And then?"):
        expected = conversation.ask(text, lambda new: None)
        status, events = lms.ask(
            "chat",
            {
                "model": 2,
                "turns": turns,
                "message": text,
                "system": "Be brief.",
                "max_new_tokens": 12,
                "seed": 5,
            },
        )
        done = events[-2]
        assert status == 200
        assert (done["text"], done["num_dropped"]) == (expected.text, expected.num_dropped)
        assert (
            "".join(event["text"] for event in events[:-2] if event["event"] == "text").strip()
            == expected.text
        )
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]


def test_labels_are_those_of_predict(jaxlm, labels, runs):
    texts = ["a lion", "the zoo is in the forest"]
    out = jaxlm("predict", f"--run={runs['labels']}", *(f"--text={text}" for text in texts), "--json")[1]
    found = labels.event("classify", "labels", texts=[texts[0], "", texts[1]])
    assert found["lines"] == [json.loads(line) for line in out.splitlines()]


def test_a_model_has_the_panels_it_can_answer(lms, labels):
    described = [model["panels"] for model in json.loads(lms.get("/api/models")[1])["models"]]
    assert described == [["next", "continue"], ["next", "continue"], ["next", "chat", "continue"]]
    assert json.loads(labels.get("/api/models")[1])["models"][0]["panels"] == ["classify"]
    status, [*_, error] = labels.ask("chat", {"message": "Hi"})
    assert "it has classify" in error["message"]


def test_a_checkpoint_is_in_memory_once(runs, model_of):
    """One that computes in bfloat16 is not kept in float32 beside it."""
    shared = model_of("chars")
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    model = model_lib.Model(str(runs["chars"]), run_lib.load_run(runs["chars"]), shared)
    gc.collect()
    held = sum(array.nbytes for array in jax.live_arrays()) - before
    # With older packages the few bytes of norms are there twice; the matrices in float32 would be three times as much.
    assert held == pytest.approx(sum(array.nbytes for array in jax.tree.leaves(model.params)), rel=0.1)
    assert {str(array.dtype) for array in jax.tree.leaves(model.params)} == {"bfloat16", "float32"}
    assert model.lm is shared.lm  # and so is every compiled function


def test_another_length_of_prompt_compiles_nothing(lms, model_of):
    steps = compiled_steps(model_of("base").lm.extend, model_of("base").lm.head)
    sizes = []
    for length in (2, 3, 9, 14):
        lms.event("continue_text", "done", prompt="a b" * (length // 2), max_new_tokens=length)
        sizes.append((steps.prefill._cache_size(), steps.decode._cache_size()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "localhost:9"}, 200),  # through a tunnel
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_other_sites_are_refused(lms, headers, status):
    found, events = lms.ask("next_token", {"prompt": "a", "top": 1}, **headers)
    assert found == status
    assert len(events) == (2 if status == 200 else 1)


@pytest.mark.parametrize(
    "path",
    [
        "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/../../../etc/passwd", "/page/index.html",
        "/%2e%2e/app.py",        "/page.css/../app.py", "//etc/passwd", "/static/x", "/docs", "/openapi.json",
        "/api/", "/page.js%00", "/.",
    ],
)  # fmt: skip
def test_no_path_is_that_of_a_file(lms, path):
    status, body, _ = lms.get(path)
    assert status == 404
    assert json.loads(body) == {"event": "error", "message": "there is nothing here."}


def test_the_page_may_load_nothing_from_elsewhere(lms):
    for path in (
        "/",
        "/page.css",
        "/page.js",
        "/common.js",
        "/next.js",
        "/texts.js",
        "/compare.js",
        "/icon.svg",
    ):
        status, body, headers = lms.get(path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "http://" not in body.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in body
        assert "innerHTML" not in body
    assert lms.open("POST", "/", b"")[1].status == 405


def test_beyond_this_machine_a_token_is_asked_for(serving):
    with serving("base", token="secret-token") as served:
        for path in ("/", "/api/models", "/page.js", "/?token=other", "/api/models?token=secret-token"):
            assert served.get(path)[0] == 401, path
        assert served.ask("next_token", {"prompt": "a"})[0] == 401
        status, _, headers = served.get("/?token=secret-token")
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        own = {"Cookie": cookie.partition(";")[0], "Host": "gpu-box:7860"}
        assert served.get("/", **own)[0] == 200
        assert served.ask("next_token", {"prompt": "a"}, **own, Origin="http://gpu-box:7860")[0] == 200
        assert served.ask("next_token", {"prompt": "a"}, **own, Origin="http://evil.example")[0] == 403
        assert served.get("/api/models", Authorization="Bearer secret-token")[0] == 200


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("next_token", {"prompt": 3}, "prompt must be a text"),
        ("next_token", {}, "prompt must be a text"),
        ("next_token", {"prompt": "a", "top": 10**9}, "top=1000000000 must be a whole number from 1 to 200"),
        ("next_token", {"prompt": "a", "top": True}, "top=True"),
        ("next_token", {"prompt": "a", "temperature": -1}, "temperature=-1.0 must be 0"),
        ("next_token", b'{"prompt": "a", "temperature": NaN}', "temperature=nan must be a number"),
        ("next_token", {"prompt": "a", "top_k": 0}, "top_k=0"),
        ("next_token", {"prompt": "a", "top_p": 2}, "top_p=2.0 must be in (0, 1]"),
        ("next_token", {"prompt": "a", "seed": -1}, "seed=-1"),
        ("next_token", {"prompt": "a", "seed": 1.5}, "seed=1.5"),
        ("next_token", {"prompt": "a", "picked": [10**6]}, "picked holds 1000000, but the model's ids are 0 to"),
        ("next_token", {"prompt": "a", "picked": ["x"]}, "picked holds 'x'"),
        ("next_token", {"prompt": "a", "candidates": ["b"] * 99}, "candidates has 99 words; there may be 32"),
        ("next_token", b'{"prompt": "\\ud800"}', "prompt has a lone surrogate"),
        ("next_token", b"[" * 100_000, "not valid JSON"),
        ("next_token", b"\xff", "not valid JSON"),
        ("next_token", [], "not a JSON object"),
        ("next_token", {"prompt": "a", "model": 7}, "model=7 must be"),
        ("next_token", {"prompt": "lion zoo " * 5000}, "tokens; the playground reads 1,024 of this model"),
        ("next_token", {"prompt": "x" * 200_000}, "prompt has 200,000 characters; there may be 100,000"),
        ("continue_text", {"prompt": "a", "max_new_tokens": 10**6}, "max_new_tokens=1000000"),
        ("continue_text", {"prompt": "a", "stop": [""]}, "a stop string is empty"),
        ("chat", {"model": 2, "message": " "}, "the message is empty"),
        ("chat", {"model": 2, "message": "a", "turns": [{"role": "system"}]}, "turn 1 is not of the user"),
        ("chat", {"model": 2, "message": "zoo " * 2000}, "leaves no room for an answer"),
        ("chat", {"model": 0, "message": "a"}, "base, step 3 cannot do this: it has next, continue."),
        ("classify", {"model": 0, "texts": ["a"]}, "cannot do this"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_the_server_lives(lms, name, body, words):
    _, [*_, error] = lms.ask(name, body)
    assert error["event"] == "error"
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert lms.event("next_token", "distribution", prompt="a", top=1)


@pytest.mark.parametrize("num_bytes", [1 << 20, 20 << 20])
def test_a_prompt_of_a_megabyte_is_refused_in_one_line(lms, num_bytes):
    try:
        status, [error] = lms.ask("next_token", {"prompt": "a" * num_bytes})
    except ConnectionError:  # beyond what is read of it
        assert num_bytes > 16 << 20
    else:
        assert status == 413
        assert "the playground takes 524 kB at a time: shorten the text" in error["message"]
    assert lms.event("next_token", "distribution", prompt="a", top=1)


def test_a_mistake_of_ours_is_one_line_without_a_traceback(lms, monkeypatch, capsys):
    monkeypatch.setenv("API_TOKEN", "very-secret-value")

    def broken(*args, **options):
        raise RuntimeError("boom very-secret-value")

    monkeypatch.setattr(model_lib, "next_token_distribution", broken)
    status, [error] = lms.ask("next_token", {"prompt": "a"})
    assert "RuntimeError" in error["message"]
    assert "boom" not in error["message"]
    said = capsys.readouterr().err
    assert "boom" in said
    assert "very-secret-value" not in said
    monkeypatch.undo()
    assert lms.event("next_token", "distribution", prompt="a", top=1)


def test_a_closed_tab_ends_its_text_and_the_next_is_served(lms, monkeypatch):
    events = []
    emit = worker_lib.Job.run

    def watched(job):
        inner = job.emit
        job.emit = lambda event: (events.append(event), inner(event))
        emit(job)

    monkeypatch.setattr(worker_lib.Job, "run", watched)
    question = {"prompt": "a", "max_new_tokens": 1024, "temperature": 5}
    connection, response = lms.open("POST", "/api/continue_text", question)
    other, answer = lms.open("POST", "/api/next_token", {"prompt": "a", "top": 1})  # a second browser waits
    assert json.loads(answer.readline())["event"] in ("waiting", "distribution")
    response.readline()
    response.close()
    connection.close()
    lines = [json.loads(line) for line in answer.read().splitlines()]
    other.close()
    assert lines[-1] == {"event": "end"}
    wait_until(lambda: lms.worker.num_left == 0)  # it counts down behind its last word
    written = sum(len(event["tokens"]) for event in events if event["event"] == "tokens")
    assert written < 1024
    assert not any(event["event"] == "done" for event in events)


def test_a_request_has_its_time(lms, monkeypatch):
    monkeypatch.setattr(worker_lib, "MAX_REQUEST_S", 0.0)
    _, [*_, error] = lms.ask("continue_text", {"prompt": "a", "max_new_tokens": 1024})
    assert error["message"] == "this took 0 s, the most that one request may: ask for fewer tokens."


def test_requests_go_before_idle_work_and_too_many_are_refused(monkeypatch):
    monkeypatch.setattr(worker_lib, "MAX_WAITING", 3)
    worker, order, events = worker_lib.Worker(), [], []
    go = worker_lib.threading.Event()
    worker.submit(worker_lib.Job(lambda job: go.wait(60), events.append))
    while worker.num_left and worker._jobs:
        time.sleep(0.001)
    worker.when_idle(lambda: order.append("idle"))
    jobs = [worker_lib.Job(lambda job, n=n: order.append(n), events.append) for n in range(3)]
    assert [worker.submit(job) for job in jobs] == [1, 2, 3]
    with pytest.raises(worker_lib.UserError, match="3 requests wait already"):
        worker.submit(worker_lib.Job(lambda job: None, events.append))
    jobs[1].cancel()
    worker.submit(
        worker_lib.Job(lambda job: order.append("last"), events.append)
    )  # in the place of the one that left
    go.set()
    while worker.num_left or "idle" not in order:
        time.sleep(0.001)
    assert order == [0, 2, "last", "idle"]
    assert worker.close(60)
