"""Texts that a slice writes in its training: which tokens are scored, and the loss where it repeats itself."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from intraslice.core.progress import no_pause
from intraslice.recovery import own_texts
from intraslice.recovery.distill import Distillation, Lesson, sampled_head
from intraslice.recovery.own_texts import (
    MARGIN,
    NATURAL,
    DistillationOnOwnTexts,
    lengths,
    occurrences,
    repetition_losses,
    weights_of,
    write_texts,
)
from intraslice.samples import KeptStates


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 1, 2, 3, 4], [0, 0, 0, 1, 1, 1, 1, 1, 2, 1, 1, 1, 3]),
        ([5] * 6, [0, 0, 0, 1, 2, 3]),  # the runs may overlap
        ([], []),
    ],
)
def test_every_time_that_a_run_of_four_tokens_comes_is_counted_at_its_last_token(text, times) -> None:
    assert occurrences(text) == times


def test_what_was_written_is_scored_until_it_loops(case, monkeypatch) -> None:
    """The first text loops from its last token but one on; the second repeats nothing: the beginning does not count."""
    written = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 7], [9, 8, 7, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13]])

    def logits_of(model, tokens, cache):
        step = cache.get("step", 0)
        return torch.nn.functional.one_hot(written[:, step], 20).float(), {"step": step + 1}

    monkeypatch.setattr(own_texts, "next_token_logits", logits_of)
    prefixes = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 1]])
    texts = write_texts(case.dense, prefixes, 13)
    assert torch.equal(texts.tokens, torch.cat([prefixes, written], dim=1))
    # A position stands for the token after it: those of the beginning are 0 to 2, that of the last token is 16.
    assert texts.scored[0].nonzero().flatten().tolist() == list(range(3, 14))
    assert texts.repeated[0].nonzero().flatten().tolist() == [10, 11, 12, 13, 14]
    assert texts.scored[1].nonzero().flatten().tolist() == list(range(3, 16))
    assert not texts.repeated[1].any()


def test_a_repetition_costs_what_another_plausible_token_lacks() -> None:
    """In a loop, the chosen token is likely to the dense model: more than any other in the second row.

    In the third, the other token has the margin; in the last, it is 25 times less likely than the chosen one.
    """
    log_probs = torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.1, 0.4], [0.02, 0.9, 0.08], [0.9, 0.04, 0.06]]).log()
    target = torch.tensor([[0.2, 0.7, 0.1], [0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.95, 0.038, 0.012]]).log()
    losses = repetition_losses(log_probs.requires_grad_(), target, torch.tensor([0, 0, 2, 0]))
    assert_close(losses, torch.tensor([math.log(5 / 4) + MARGIN, math.log(5) + MARGIN, 0.0, 0.0]))
    losses.sum().backward()
    expected = torch.zeros(4, 3)
    expected[:2, :2] = torch.tensor([1.0, -1.0])
    assert_close(log_probs.grad, expected)


def test_the_gradient_on_own_texts_is_that_of_the_scored_tokens(case) -> None:
    """Against autograd over all logits at once."""
    dense = case.dense
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9, 9]])
    scored, repeated = torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    scored[:, -1] = repeated[:, -1] = False
    hidden = torch.randn(12, dense.config.hidden_size, generator=torch.Generator().manual_seed(1))
    weight = dense.model.layers[0].mlp.down_proj.weight
    weight.requires_grad_(True)
    likely = torch.arange(dense.lm_head.out_features)
    head = sampled_head(dense.lm_head, likely, torch.Generator().manual_seed(0))
    lesson = Lesson(tokens, hidden, likely, (scored, repeated))
    DistillationOnOwnTexts()._add_gradients_(dense, lesson, head, scale=0.5)
    streamed, weight.grad = weight.grad, None
    log_probs, target = dense(tokens).logits.log_softmax(-1), dense.lm_head(hidden).log_softmax(-1).view(2, 6, -1)
    loss = ((target.exp() * (target - log_probs)).sum(-1) * scored).sum()
    following = tokens.roll(-1, dims=1).flatten()
    losses = repetition_losses(log_probs.flatten(0, 1), target.flatten(0, 1), following)
    (0.5 / 12 * (loss + 2 * (losses * repeated.flatten()).sum())).backward()
    assert repeated.any()
    assert_close(streamed, weight.grad, atol=1e-7, rtol=1e-4)
    weight.grad = None
    weight.requires_grad_(False)


def test_the_loss_weighs_more_where_texts_by_others_repeat_a_run() -> None:
    """A position stands for the token after it: the last but one completes the second 1, 2, 3, 4."""
    assert weights_of(torch.tensor([1, 2, 3, 4, 9, 1, 2, 3, 4, 5])).tolist() == [1.0] * 7 + [NATURAL, 1.0, 1.0]


def test_own_texts_have_their_turns_among_the_others() -> None:
    """Of 128 tokens the slice writes 80; steps are of one sequence of 512 tokens each."""
    assert (lengths(512), lengths(24)) == ((48, 80), (9, 15))
    steps = DistillationOnOwnTexts(schedule=((0.63, 0.74), 0.2)).steps(50, 512, 1)  # 50 on others
    assert [index for index, step in enumerate(steps) if not step] == [*range(32, 37), *range(42, 47)]
    assert [step for step in steps if step] == Distillation().steps(50, 512, 1)
    many = DistillationOnOwnTexts().steps(700, 512, 1)  # of 21 steps each
    assert [many.index([], start) for start in (0, 441, 546, 651)] == [420, 525, 630, 721]


def test_own_texts_go_on_from_parts_of_the_others_and_are_read_by_the_dense_model(case) -> None:
    dense, tokens = case.dense, case.tokens[:4]
    sliced = copy.deepcopy(dense)
    sliced.model.layers[0].mlp.down_proj.weight.mul_(-1)
    states = KeptStates(torch.zeros(4, 48, dense.config.hidden_size), torch.zeros(4, 48, dtype=torch.int32))
    turns = DistillationOnOwnTexts(tokens_per_step=96).lessons(
        dense, sliced, tokens, states, [[2, 3], [], []], no_pause
    )
    others, (first,), (second,) = turns
    assert [lesson.weights[0].tolist() for lesson in others] == [weights_of(text).tolist() for text in tokens[2:]]
    assert not torch.equal(first.tokens, second.tokens)
    for lesson in (first, second):
        assert lesson.tokens.shape == (2, 48)
        begun = lesson.tokens[:, :18]
        assert (tokens.unfold(1, 18, 1).flatten(0, 1)[:, None] == begun).all(-1).any(0).all()
        for column in range(18, 48):
            assert torch.equal(sliced(lesson.tokens[:, :column]).logits[:, -1].argmax(-1), lesson.tokens[:, column])
        assert_close(lesson.hidden, dense.model(lesson.tokens).last_hidden_state.flatten(0, 1))
