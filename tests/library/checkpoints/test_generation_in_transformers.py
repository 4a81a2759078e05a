"""A saved folder generates, pads, drafts and speaks as transformers asks of its own models, as far as it applies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel, pipeline

from intraslice.modeling.hidden_states import cache_keyword

STEPS = 8


def greedy(model: PreTrainedModel, prompt: Tensor, **options: object) -> Tensor:
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "max_new_tokens": STEPS} | options
    return model.generate(prompt, do_sample=False, eos_token_id=None, **options)


@pytest.fixture
def prompt(opened) -> Tensor:
    return opened.case.tokens[:2, :11]


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "static", "disable_compile": True, "prefill_chunk_size": 4},
        {"prefill_chunk_size": 4},
    ],
    ids=["none", "static", "static-in-chunks", "in-chunks"],
)
def test_every_cache_gives_the_same_answer(opened, prompt, options):
    assert torch.equal(greedy(opened.model, prompt, **options), greedy(opened.model, prompt))


def test_beams_and_samples_are_the_same_with_and_without_a_cache(opened, prompt):
    for options in ({"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        assert torch.equal(
            greedy(opened.model, prompt, **options), greedy(opened.model, prompt, use_cache=False, **options)
        )
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"do_sample": True, "top_k": 20, "temperature": 0.8, "eos_token_id": None, "pad_token_id": 0}
        drawn.append(opened.model.generate(prompt, max_new_tokens=STEPS, use_cache=use_cache, **options))
    assert torch.equal(*drawn)


def test_generation_goes_on_from_a_cache_and_from_embeddings(opened, prompt):
    expected = greedy(opened.model, prompt)
    cache = {cache_keyword(opened.model): DynamicCache(config=opened.model.config)}
    begun = greedy(opened.model, prompt, **cache, max_new_tokens=3)
    assert torch.equal(begun, expected[:, : prompt.shape[1] + 3])
    assert torch.equal(greedy(opened.model, begun, **cache, max_new_tokens=STEPS - 3), expected)
    embedded = opened.model.get_input_embeddings()(prompt).detach()
    answer = opened.model.generate(
        inputs_embeds=embedded, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(answer, expected[:, prompt.shape[1] :])


@torch.no_grad()
def test_outputs_are_of_the_shapes_that_transformers_promises(opened, prompt):
    assert opened.model(prompt, logits_to_keep=2).logits.shape == (2, 2, opened.model.config.vocab_size)
    whole = opened.model(prompt, labels=prompt, output_hidden_states=True)
    expected = nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), prompt[:, 1:].flatten())
    torch.testing.assert_close(whole.loss, expected)
    if not opened.is_crossmodule:  # whose states are of other widths
        assert [states.shape for states in whole.hidden_states] == [(2, 11, opened.model.config.hidden_size)] * 4
    answer = greedy(opened.model, prompt, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert len(answer.scores) == len(answer.logits) == STEPS


@torch.no_grad()
def test_rows_of_a_left_padded_batch_are_what_they_are_alone(opened):
    lengths, tokens = (19, 12, 7), opened.case.tokens
    batch, mask = torch.zeros(3, 19, dtype=torch.long), torch.zeros(3, 19, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, -length:], mask[row, -length:] = tokens[row, :length], 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    together = opened.model(batch, attention_mask=mask, position_ids=positions).logits
    answers = greedy(opened.model, batch, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = tokens[row : row + 1, :length]
        torch.testing.assert_close(together[row, -length:], opened.model(alone).logits[0], rtol=0, atol=1e-5)
        assert torch.equal(answers[row, 19:], greedy(opened.model, alone)[0, length:])


def test_as_a_draft_it_leaves_the_dense_answer_as_it_is(opened):
    prompt, dense = opened.case.tokens[:1, :11], opened.case.original
    assert torch.equal(greedy(dense, prompt, assistant_model=opened.model), greedy(dense, prompt))
    assert torch.equal(greedy(opened.model, prompt, assistant_model=dense), greedy(opened.model, prompt))
    assert torch.equal(greedy(opened.model, prompt, prompt_lookup_num_tokens=3), greedy(opened.model, prompt))


def test_a_pipeline_says_what_generate_does(opened):
    tokenizer = AutoTokenizer.from_pretrained(opened.folder)
    speak = pipeline("text-generation", model=opened.model, tokenizer=tokenizer)
    (said,) = speak("w7 w8 w9", max_new_tokens=4, do_sample=False, return_full_text=False)
    ids = tokenizer("w7 w8 w9", return_tensors="pt").input_ids
    answer = opened.model.generate(ids, max_new_tokens=4, do_sample=False)[0, 3:]
    assert said["generated_text"] == tokenizer.decode(answer, skip_special_tokens=True)
