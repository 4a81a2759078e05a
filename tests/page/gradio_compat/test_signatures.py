"""Functions with the signatures that gradio reads."""

import functools
from collections.abc import Iterator
from functools import partial

import gradio as gr
import pytest
from gradio_pages import page_of

from components.gradio_compat.signatures import parameters_of, partial_handler, share_parameters, wrap_handler


def add(base: float, number: float, request: gr.Request) -> float:
    """The sum, if the request is there."""
    return base + number if isinstance(request, gr.Request) else -1.0


def described(client, endpoint: str) -> dict:
    return client.http.get(f"{client.api}/info").json()["named_endpoints"][f"/{endpoint}"]


def test_plain_gradio_sees_no_types_through_a_partial() -> None:
    with pytest.raises(ValueError, match="type hints"):
        page_of(functools.partial(add, 1.0))


def test_gradio_sees_the_name_the_types_and_the_request_of_a_partial_handler(launch) -> None:
    client = launch(page_of(partial_handler(add, 1.0)))
    assert client.ask("work", 2.0) == ("complete", [3.0])
    shown = described(client, "work")
    assert shown["description"] == "The sum, if the request is there."
    assert [parameter["parameter_name"] for parameter in shown["parameters"]] == ["number"]


def other(base: float = 1.0, number: float = 2.0, digits: int = 3) -> str:
    return f"{base + number:.{digits}f}"


def double(base: float = 1.0, number: float = 4.0) -> float:
    return 2 * base + number


def api_components(page: gr.Blocks) -> int:
    return sum(component["type"] == "api" for component in page.config["components"])


def test_plain_gradio_creates_a_component_for_every_parameter_of_every_endpoint() -> None:
    with gr.Blocks() as page:
        for function in (other, double):
            gr.api(function, api_name=function.__name__)
    assert api_components(page) == 7


def test_endpoints_share_the_parameters_that_are_alike_and_answer_as_before(launch) -> None:
    with gr.Blocks() as page:
        share_parameters(page, [gr.api(function, api_name=function.__name__) for function in (other, double)])
    assert api_components(page) == 6  # `number` has two defaults
    client = launch(page)
    assert client.ask("other", 1.0, 2.0, 3) == ("complete", ["3.000"])
    assert client.ask("double", 1.0, 2.0) == ("complete", [4.0])
    assert [parameter["parameter_default"] for parameter in described(client, "double")["parameters"]] == [1.0, 4.0]


def test_plain_gradio_clears_the_outputs_of_a_generator_that_yields_nothing(launch) -> None:
    def nothing() -> Iterator[str]:
        yield from ()

    with gr.Blocks() as page:
        button, output = gr.Button(), gr.Textbox("as it was")
        button.click(nothing, None, output, api_name="nothing")
    assert launch(page).ask("nothing") == ("complete", [None])


def test_a_wrapper_converts_each_answer_and_is_a_generator_where_the_handler_is_one() -> None:
    def nothing(to: int) -> Iterator[int]:
        yield from ()

    def count(to: int) -> Iterator[int]:
        yield from range(to)

    for handler, expected in ((count, [0, 10, 20]), (lambda to: to, 30), (nothing, [{}])):
        tenfold = partial(wrap_handler, handler, lambda values: (len(values),), parameters_of(count))
        wrapped = tenfold(lambda answer: 10 * answer if answer else answer)
        answer = wrapped("a", "b", "c")
        assert (list(answer) if isinstance(answer, Iterator) else answer) == expected

    def lazy_gettext(value: "float", request: "gr.Request | None") -> "float":
        return value

    assert [parameter.annotation for parameter in parameters_of(lazy_gettext)] == [float, gr.Request | None]


def test_a_handler_gets_the_id_of_the_open_page_for_gradios_request(launch) -> None:
    def caller(greeting: str, client: str) -> str:
        return f"{greeting} {client}"

    wrapped = partial_handler(caller, "from")
    assert [parameter.annotation for parameter in parameters_of(wrapped)] == [gr.Request]
    assert wrapped(None) == "from program"
    assert wrapped("ada") == partial_handler(partial_handler(caller), "from")("ada") == "from ada"
    with gr.Blocks() as page:
        button, output = gr.Button(), gr.Textbox()
        button.click(wrapped, None, output, api_name="caller")
    client = launch(page)
    (state, (answer,)) = client.ask("caller")
    assert state == "complete"
    assert answer.startswith("from ")
    assert answer != "from program"


def test_values_that_cannot_be_read_are_refused_or_raise() -> None:
    def read(values: tuple[int, ...]) -> tuple[int]:
        if values[0] < 0:
            raise ValueError("below 0")
        return (values[0],)

    def double(number: int) -> int:
        return 2 * number

    def count(number: int) -> Iterator[int]:
        yield from range(number)

    refused = [wrap_handler(handler, read, parameters_of(handler), refuse=str) for handler in (double, count)]
    assert (refused[0](3), list(refused[1](3))) == (6, [0, 1, 2])
    assert (refused[0](-1), list(refused[1](-1))) == ("below 0", ["below 0"])
    with pytest.raises(ValueError, match="below 0"):
        wrap_handler(double, read, parameters_of(double))(-1)
