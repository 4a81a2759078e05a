"""Models on the visitor's own device, in a real browser with the real WebAssembly build of llama.cpp."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import urljoin

import pytest
from browsing import PATIENCE, Opened
from gguf_files import ask_llama_cpp
from playwright import sync_api as playwright
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from components.compare import device_panel
from components.device.wllama import VERSION
from intraslice import load_model

from .conftest import OnDevice

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

PROMPTS = ["Hello world", "it's paid", "and I paid 3.50 for things", "in 2024 it", "12345 things"]
STEPS = 32  # tokens of an answer
CLOSE = 0.02  # nats
ROUNDED = 0.3  # nats: products of q8_0 round activations to 8 bits, in WebAssembly otherwise than here
# Answers five prompts without a template with a model that the page has downloaded.
COMPLETE = """async ([engine, url, prompts, maxTokens]) => {
    const at = (path) => new URL(path, document.baseURI).href;
    const model = await isx.device.open(at(engine), at(url), await isx.files.stored(at(url)));
    const answers = [];
    for (const prompt of prompts) {
        const answer = await isx.device.complete(model, { prompt, maxTokens });
        const scored = answers.length ? [] : await isx.device.score(model, { prompt }, answer.tokens);
        answers.push({ ...answer, scored });
    }
    return answers.map(({ tokens, text, count, ended, scored }) => ({ text, count, ended, scored,
        tokens: tokens.map(({ id, logprob, top }) =>
            ({ id, logprob, top: top.map((one) => [one.id, one.logprob]) })) }));
}"""
# Stops an answer as soon as it may be stopped, which is sooner than a test can click.
GENERATE_AND_STOP = """() => {
    document.querySelector("#generate").click();
    const stop = document.querySelector("#device-stop");
    const waiting = setInterval(() => stop.checkVisibility() && (clearInterval(waiting), stop.click()), 1);
}"""
STATUS = "#device [role=status]"


def answered_like_llama_cpp(
    page: playwright.Page, url: str, prompts: list[str], tokenizer: PreTrainedTokenizerFast, close: float = CLOSE
) -> dict:
    """The answer to the first prompt. All have the greedy tokens and log-probabilities of llama.cpp, up to a near tie.

    Args:
        url: of the model's file.
    """
    answers = page.evaluate(COMPLETE, [f"device/wllama-{VERSION}/", url, prompts, STEPS])
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    questions = [{"prompt": prompt, "predict": STEPS, "top": 10} for prompt in ids]
    with NamedTemporaryFile(suffix=".gguf") as file:
        file.write(page.request.get(urljoin(page.url, url)).body())
        file.flush()
        told = ask_llama_cpp(Path(file.name), logprobs=questions)["logprobs"]
    for answer, expected in zip(answers, told, strict=True):
        assert answer["count"] == STEPS or answer["ended"]
        for token, likeliest in zip(answer["tokens"], expected, strict=False):
            first, second, *_ = sorted(likeliest.values(), reverse=True)
            if likeliest.get(str(token["id"]), -1e9) < first:
                assert first - second < close
                break
            assert token["logprob"] == pytest.approx(first, abs=close)
            for other, logprob in token["top"][: 3 if close == CLOSE else 0]:
                assert likeliest[str(other)] == pytest.approx(logprob, abs=close)
    return answers[0]


@pytest.fixture(scope="module")
def browser_context(chromium: playwright.Browser) -> Iterator[playwright.BrowserContext]:
    """With a process of its own: WebAssembly reserves address space, which other tests' pages may have used up."""
    with chromium.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        context.set_default_timeout(PATIENCE)
        yield context


@pytest.fixture(scope="module")
def page_of_module(visit_once, on_device: OnDevice) -> Opened:
    return visit_once(on_device.query, width=1100, height=1000)


@pytest.fixture
def opened(page_of_module: Opened) -> Iterator[Opened]:
    """The page, which runs on the server and has no file on the device."""
    yield page_of_module
    page_of_module.page.click("#run-on input[value=server]")
    page_of_module.page.evaluate("isx.files.free()")


def choose(opened: Opened) -> None:
    opened.page.click("#run-on input[value=device]")


def download(opened: Opened) -> None:
    choose(opened)
    opened.page.click("#device-download")
    opened.says(STATUS, "The models are on your device")


def test_answers_on_the_device_are_those_of_llama_cpp(opened, on_device, page_session) -> None:
    page = opened.page
    choose(opened)
    opened.says(STATUS, "not on your device yet")
    assert "MB" in page.inner_text("#device-download")
    download(opened)
    page.click("#generate")
    opened.says("#device", "64 tokens", "Decode on your device", "Loss increase per token")
    assert page.locator("#answers").is_hidden()
    assert page.locator("#device .isx-next tbody tr").count() == 8
    page.wait_for_selector("#device-generate:visible")

    # Nothing more is asked of the server, and nothing of another host.
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#generate")
    opened.says("#device", "64 tokens")
    page.wait_for_selector("#device-generate:visible")
    signs_of_life = "/healthz"  # which the page asks for at times
    assert [url for url in asked if not url.startswith(("blob:", "data:")) and not url.endswith(signs_of_life)] == []

    tokenizer = AutoTokenizer.from_pretrained(on_device.request.settings.model)
    described = json.loads(device_panel.describe(page_session, on_device.request))
    for name in ("dense", "sliced"):
        # A model gives its own answer the log-probabilities with which it wrote it, where the text is read alike.
        answer = answered_like_llama_cpp(page, described[name]["url"], PROMPTS, tokenizer)
        scored = zip(answer["tokens"], answer["scored"], strict=True)
        pairs = [(score, token["logprob"]) for token, score in scored if score is not None]
        assert pairs
        assert [score for score, _ in pairs] == pytest.approx([logprob for _, logprob in pairs], abs=CLOSE)


# What a browser refuses: how it does, how that ends, and what the visitor reads.
REFUSALS = {
    "WebAssembly": (
        "window.kept = window.WebAssembly; delete window.WebAssembly;",
        "window.WebAssembly = window.kept;",
        "does not support WebAssembly",
    ),
    "download": (
        """window.kept = window.fetch;
        window.fetch = async (url, options) => {
            const answer = await window.kept(url, options);
            if (!String(url).includes("/models/")) return answer;
            const reader = answer.body.getReader();
            const body = new ReadableStream({ async start(stream) {
                const { value } = await reader.read();
                stream.enqueue(value.slice(0, 1000));
                setTimeout(() => stream.error(new Error("network lost")), 50);
            } });
            return new Response(body, { headers: answer.headers });
        };""",
        "window.fetch = window.kept;",
        "The download stopped after 0.0 of",
    ),
    "memory": (
        """window.kept = URL.createObjectURL;
        const refuse = `WebAssembly.instantiate = WebAssembly.instantiateStreaming = async () => {
            throw new RangeError("WebAssembly.Memory(): could not allocate memory") };`;
        const refused = (blob) => blob.type.includes("javascript") ? new Blob([refuse, blob], blob) : blob;
        URL.createObjectURL = (blob) => window.kept(refused(blob));""",
        "URL.createObjectURL = window.kept;",
        "too little memory",
    ),
    "storage": (
        """window.kept = Object.getOwnPropertyDescriptor(window, 'caches');
        Object.defineProperty(window, 'caches', { configurable: true, get() { throw new Error('denied') } });""",
        "Object.defineProperty(window, 'caches', window.kept);",
        "The models are on your device",
    ),
}


def test_what_a_browser_refuses_is_said_and_the_page_goes_on(opened) -> None:
    page = opened.page
    for what, (refuse, end, words) in REFUSALS.items():
        page.evaluate("isx.files.free()")
        page.evaluate(f"() => {{ {refuse} }}")
        choose(opened)
        if what != "WebAssembly":
            page.click("#device-download")
        if what == "memory":
            opened.says(STATUS, "The models are on your device")
            page.click("#device-generate")
        opened.says(STATUS, words)
        if what == "storage":  # they live as long as the page
            opened.says("#device", "does not keep files")
            page.click("#generate")
            opened.says("#device", "64 tokens")
        page.evaluate(f"() => {{ {end} }}")
        page.click("#run-on input[value=server]")
        assert page.locator("#device").is_hidden()
    page.click("#generate")
    opened.says("#dense-answer", "token")
    opened.forgive("memory", "message.replace")  # wllama's own message fails, too


def test_settings_that_change_want_other_files_and_a_stop_ends_an_answer(opened) -> None:
    page = opened.page
    download(opened)
    page.evaluate(GENERATE_AND_STOP)
    opened.until("/stopped/i.test(document.querySelector('#device').textContent)")
    opened.slide(40)
    page.locator("#sparsity input[type=range]").dispatch_event("pointerup")
    opened.says(STATUS, "not on your device yet")
    page.click("#device-download")
    opened.says(STATUS, "The models are on your device")
    page.click("#generate")
    opened.says("#device", "IntraSlice, 40% removed", "64 tokens")
    page.click("#device-type input[value=f16]")
    opened.says(STATUS, "not on your device yet")
    page.click("#device-type input[value=q8_0]")
    opened.says(STATUS, "The models are on your device")
    opened.open_more()
    page.fill("#seed input", "7")  # another calibration, which is not made yet
    page.press("#seed input", "Tab")
    opened.says(STATUS, "not on your device yet")
    page.click("#device-download")
    opened.says(STATUS, "The models are on your device")
    page.evaluate("isx.lesson.show(7)")  # "Who said it?" reads the server's answers
    page.wait_for_selector("#run-on input[value=server]:checked", state="attached")
    page.click("#generate")
    opened.says("#dense-answer", "token")


@pytest.mark.slow
@pytest.mark.parametrize(("file_type", "close"), [("f16", CLOSE), ("q8_0", ROUNDED)])
def test_the_default_model_answers_as_in_llama_cpp(chromium, real_app, file_type, close) -> None:
    with chromium.new_context() as context:
        context.set_default_timeout(600_000)
        opened = Opened(context.new_page())
        page = opened.page
        page.goto(f"{real_app}/?tab=compare&sparsity=30")
        opened.says("#status", "Calibrated on 32 x")
        choose(opened)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.click(f"#device-type input[value={file_type}]")
        download(opened)
        prompts = ["The capital of France is", "def fibonacci(n):", "Once upon a time", "Water boils at"]
        urls = {url for url in asked if url.endswith(".gguf")}
        assert len(urls) == 2
        for url in urls:
            answered_like_llama_cpp(page, url, [*prompts, "In 2024, 17 of"], load_model("default").tokenizer, close)
