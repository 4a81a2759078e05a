"""Greedy answers to fixed prompts: how often they loop, how soon they differ from the dense model's, how varied
they are. Perplexity scores the next token of other people's text, and does not show that a model repeats itself.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.evaluation.generation import end_tokens, prompt_tokens
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import next_token_logits
from intraslice.samples import last_hidden

LOOP_TOKENS, LOOP_REPEATS = 4, 3  # an answer loops if a 4-gram comes three times
NGRAM = 3  # tokens, of the fraction of distinct n-grams
FORMAT = "2"
ANSWER_TOKENS = 64
FEW = 50  # prompts, the first of `PROMPTS`: what is compared often


class AnswerStatistics(NamedTuple):
    """Statistics of several answers."""

    loops: float  # fraction of the answers in which a 4-gram comes three times
    tokens_before_divergence: float  # mean number of tokens that an answer has in common with the dense model's
    answer_tokens: float  # mean length of an answer; one that ends early has fewer chances to loop
    distinct_3grams: float  # fraction of all 3-grams within answers that are the first of their kind in their answer


def answer_statistics(answers: Sequence[Sequence[int]], dense: Sequence[Sequence[int]]) -> AnswerStatistics:
    """Statistics of the tokens of answers, where `dense` has the dense model's answers to the same prompts."""
    counts = [ngrams(answer, NGRAM) for answer in answers]
    common = [common_tokens(answer, other) for answer, other in zip(answers, dense, strict=True)]
    return AnswerStatistics(
        loops=sum(map(has_loop, answers)) / len(answers),
        tokens_before_divergence=sum(common) / len(common),
        answer_tokens=sum(map(len, answers)) / len(answers),
        distinct_3grams=sum(map(len, counts)) / max(1, sum(count.total() for count in counts)),
    )


def has_loop(answer: Sequence[int]) -> bool:
    """Whether any `LOOP_TOKENS` consecutive tokens come `LOOP_REPEATS` times or more."""
    return max(ngrams(answer, LOOP_TOKENS).values(), default=0) >= LOOP_REPEATS


def ngrams(tokens: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    """All runs of `size` consecutive tokens, with their counts."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens before the first that differs, or the length of the shorter answer."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


PROMPTS = (
    "Why is the sky blue?",
    "Explain how a bicycle stays upright.",
    "Write a short poem about the sea.",
    "List five things to pack for a hike.",
    "How do I boil an egg?",
    "What is the difference between weather and climate?",
    "Give three reasons to learn a second language.",
    "Describe a busy market in the morning.",
    "What does a heart do?",
    "Tell a story about a lost key.",
    "How does a refrigerator keep food cold?",
    "Write a polite email that asks for a day off.",
    "What is photosynthesis?",
    "Name three planets and say one thing about each.",
    "How can I sleep better?",
    "Write a Python function that adds two numbers.",
    "What is a prime number?",
    "Explain gravity to a child.",
    "What should I cook with rice and beans?",
    "Why do leaves change their colour in autumn?",
    "Describe your favourite kind of music.",
    "How do vaccines work?",
    "What are the primary colours?",
    "Write two sentences about winter.",
    "How do I change a flat tyre?",
    "What is the capital of Italy, and what can I see there?",
    "Why do we have leap years?",
    "Give me advice for a job interview.",
    "What is the water cycle?",
    "Write a dialogue between a cat and a dog.",
    "How are mountains formed?",
    "What is inflation in an economy?",
    "Explain what a computer program is.",
    "Why is exercise good for the body?",
    "Describe the taste of an orange.",
    "How does a plane fly?",
    "What is the largest animal on Earth?",
    "Plan a weekend in a small town.",
    "What is democracy?",
    "How do bees make honey?",
    "Write a riddle and its answer.",
    "What causes an earthquake?",
    "How can a school save energy?",
    "What is the meaning of the word patience?",
    "Describe a house by a lake.",
    "Why do ships float?",
    "What did people use before electric light?",
    "Explain how to multiply 12 by 15.",
    "What makes a good friend?",
    "How do I start a small garden?",
    # Nothing was trained or chosen on those that follow.
    "Why does ice float on water?",
    "How do I remove a coffee stain from a shirt?",
    "Write a short story about a lighthouse keeper.",
    "What is the difference between a fruit and a vegetable?",
    "List four ways to save money on food.",
    "Explain how a zip fastener works.",
    "What is a black hole?",
    "Write a thank-you note to a teacher.",
    "How do I tie a tie?",
    "Describe the smell of a forest after rain.",
    "Why do cats purr?",
    "Name five animals that live in the desert.",
    "How does a microwave oven heat food?",
    "Write a poem about an old clock.",
    "What should I do if I miss my train?",
    "Who invented the printing press?",
    "Give me three ideas for a birthday present.",
    "How do I make pancakes?",
    "What is the purpose of a passport?",
    "Explain what a verb is.",
    "Describe a storm at sea.",
    "Why do we dream?",
    "How can I stop biting my nails?",
    "Write a short advertisement for a bakery.",
    "What is the boiling point of water?",
    "How does a candle burn?",
    "Tell me a joke about a chicken.",
    "What are the four seasons, and how do they differ?",
    "How do I write a good summary of a book?",
    "What is the job of a judge?",
    "Describe a garden in spring.",
    "Write a letter to a friend who has moved away.",
    "How do fish breathe?",
    "What is the difference between a crocodile and an alligator?",
    "Give me tips for taking better photographs.",
    "Why is the sea salty?",
    "How do I keep a houseplant alive?",
    "What is a synonym for happy?",
    "Write a dialogue between a customer and a waiter.",
    "How long does it take to walk ten kilometres?",
    "What is recycling, and why does it matter?",
    "Plan a simple dinner for four people.",
    "Explain the rules of football in a few sentences.",
    "What is a budget?",
    "Write a story that begins with a knock at the door.",
    "How do I clean a window without streaks?",
    "Why do birds migrate?",
    "What is the longest river in Africa?",
    "Describe an old library.",
    "How can I learn to play the guitar?",
    "What happens when you mix blue and yellow paint?",
    "Write a short speech for a wedding.",
    "How is glass made?",
    "What is a verse in a poem?",
    "List the steps for planting a tree.",
    "Why do people yawn?",
    "What should I look for when I rent a flat?",
    "Explain what a virus is.",
    "How do I politely refuse an invitation?",
    "Write a haiku about snow.",
    "What is the difference between speed and velocity?",
    "How do I make a paper aeroplane?",
    "Describe the life of a farmer a hundred years ago.",
    "What are three uses of salt?",
    "Why does metal rust?",
    "How can I become a better listener?",
    "Write a short review of a film that you did not like.",
    "What is the currency of Japan?",
    "How does the heart pump blood?",
    "Give me a name for a blue parrot and a reason for it.",
    "What is a metaphor? Give an example.",
    "How do I prepare for a long flight?",
    "Why do onions make us cry?",
    "Describe a train journey through the mountains.",
    "What is the difference between a lake and a sea?",
    "How do I find the area of a triangle?",
    "Write instructions for brushing your teeth.",
    "What is a volcano?",
    "How can a small shop attract more customers?",
    "Tell a story about a brave mouse.",
    "Why is bread soft inside and hard outside?",
    "What did the Romans build?",
    "How do I store potatoes?",
    "Explain what a password manager does.",
    "Write a message to a neighbour about noise at night.",
    "What is the role of a mayor?",
    "How do spiders make webs?",
    "List three advantages of working from home.",
    "What is the difference between a novel and a short story?",
    "Describe a day in the life of a nurse.",
    "How do I sharpen a kitchen knife?",
    "Why do some people snore?",
    "What is a balanced diet?",
    "Write a poem about friendship.",
    "How does a compass work?",
    "What can I do on a rainy afternoon?",
    "Explain the word courage with an example.",
    "How do I make a strong password?",
    "What is the largest ocean?",
    "Describe a meal that reminds you of childhood.",
    "Why do we need sleep?",
    "How do I teach a dog to sit?",
    "What is supply and demand?",
    "Write a short scene in which two friends meet after ten years.",
    "How are rainbows formed?",
    "What are the symptoms of a cold?",
    "Give me a recipe for tomato soup.",
    "How do I apologise to a colleague?",
    "What is the difference between a city and a village?",
    "Why do cars need oil?",
    "Write a fairy tale about a golden fish.",
    "How do I read a map?",
    "What is an atom?",
    "List five words that describe the sun.",
    "How can parents help a child to read?",
    "What is the history of the bicycle?",
    "Describe a painting of a harbour.",
    "How do I fix a leaking tap?",
    "Why does the moon change its shape?",
    'What is the meaning of the proverb "a stitch in time saves nine"?',
    "Write a product description for a wooden chair.",
    "How does a thermometer work?",
    "What is a fair way to share a cake between three people?",
    "How do I start a conversation at a party?",
    "Name two famous composers and one work of each.",
    "Why do we celebrate birthdays?",
    "What is the difference between butter and margarine?",
    "Write a diary entry of a sailor.",
    "How do I write a Python loop that prints the numbers from one to ten?",
    "What is an earthquake-proof building?",
    "How do plants get water from the soil?",
    "Describe a snowy street at night.",
    "What should a first-aid box contain?",
    "How can I remember names better?",
    "Why do we have two ears?",
    "What is a contract?",
    "Write a limerick about a baker.",
    "How do I measure the height of a tree?",
    "What are the benefits of reading every day?",
    "Explain the difference between rain, hail and snow.",
    "How does soap clean our hands?",
    "Tell me about a tradition in your country.",
    "What is the square root of 81, and why?",
    "How do I plan a surprise party?",
    "Why do stars twinkle?",
    "Write an introduction for a talk about bees.",
    "What is a democracy's parliament for?",
    "How do I choose a good melon?",
    "Describe a robot that helps in the kitchen.",
    "What is the difference between a hero and a villain?",
    "How is chocolate made?",
    "Why is it important to drink water?",
    "What does a carpenter do?",
    "Write a complaint about a broken lamp.",
    "How do I pack a suitcase well?",
    "What is an echo?",
    "List three inventions that changed the world.",
    "How do whales sleep?",
    "What makes a story exciting?",
    "Explain how a bank earns money.",
    "How do I get rid of ants in the kitchen?",
    "Describe the sound of a city at dawn.",
    "What is the difference between a moth and a butterfly?",
    "Why do we use umbrellas?",
    "Write a conversation between the sun and the moon.",
    "How do I learn a poem by heart?",
    "What is the capital of Canada?",
    "How does a lock on a canal work?",
    "What is gossip, and why do people like it?",
    "Give me a plan for studying for an exam in one week.",
    "How do I know if an egg is fresh?",
    "Why do tyres have a pattern?",
    "What is a glacier?",
    "Write three questions for an interview with an astronaut.",
    "How can I make my home warmer in winter?",
    "Describe a very old tree.",
    "What is the function of the lungs?",
    "How do I make a simple kite?",
    "Why are traffic lights red, yellow and green?",
    "What is the difference between a simile and a metaphor?",
    "Write a bedtime story about a sleepy bear.",
    "How do I wash a woollen jumper?",
    "What is a museum for?",
    "How did people tell the time before clocks?",
    "Name three kinds of bread and where they come from.",
    "Why do babies cry?",
    "What is teamwork?",
    "How do I write a CV?",
    "Describe a market hall in the south of France.",
    "What is electricity?",
    "Write a short play about a lost umbrella.",
    "How can we protect rivers from pollution?",
    "What is a leap of faith?",
    "How do I cut an onion?",
    "Why do camels have humps?",
    "What are the rules of a good debate?",
    "Tell me how to say hello in three languages.",
    "How does a bird learn to fly?",
    "What would you take to a desert island?",
    "Explain why honesty matters.",
)


def tokens_of_prompts(tokenizer: PreTrainedTokenizerBase, count: int = FEW) -> list[list[int]]:
    """The tokens of the first prompts, through the chat template if there is one."""
    return [prompt_tokens(tokenizer, prompt) for prompt in PROMPTS[:count]]


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = ANSWER_TOKENS,
    stage: str = "answers",
    *,
    may_end: bool = True,
    progress: ProgressOption = True,
) -> list[list[int]]:
    """The tokens of a greedy answer to each prompt (its tokens), in one batch, without the end token.

    Unless answers `may_end`, the end token is never chosen, and all have `max_new_tokens` tokens.
    """
    report = progress_callback(progress)
    rows = [torch.tensor(prompt, dtype=torch.int64, device=model.device) for prompt in prompts]
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    end_ids = end_tokens(model)
    ends = torch.tensor(sorted(end_ids), dtype=torch.int64, device=model.device)
    cache: dict[str, Any] = {}
    columns: list[Tensor] = []
    running = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    while len(columns) < max_new_tokens and running.any():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        logits, cache = next_token_logits(model, tokens, cache, attention_mask=mask, position_ids=positions)
        if not may_end:
            logits[:, ends] = -torch.inf
        tokens = logits.argmax(-1, keepdim=True)
        columns.append(tokens)
        running &= ~torch.isin(tokens[:, 0], ends)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        report(Progress(stage, len(columns), max_new_tokens))
    report(Progress(stage, max_new_tokens, max_new_tokens))
    answers = torch.cat(columns, dim=1).tolist()
    return [list(takewhile(lambda token: token not in end_ids, answer)) for answer in answers]


@torch.no_grad()
def answers_loss(model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
    """A model's mean loss on the tokens of answers after their prompts, in nats per token; infinite without a token."""
    total, count = 0.0, sum(map(len, answers))
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([*prompt, *answer], device=model.device)
        hidden = last_hidden(model, tokens)[len(prompt) - 1 : -1]
        total += functional.cross_entropy(model.lm_head(hidden).float(), tokens[len(prompt) :], reduction="sum").item()
    return total / count if count else math.inf


def answers_key(model: PreTrainedModel, prompts: list[list[int]]) -> object:
    """What a model's answers to prompts depend on besides its weights, for keys of the cache."""
    return prompts, sorted(end_tokens(model))


def answer_columns(
    loaded: LoadedModel, model: PreTrainedModel, prompts: list[list[int]], stage: str, *, progress: ProgressCallback
) -> dict[str, float]:
    """Columns of a sweep's row: the statistics of the model's answers, and those of the dense model, which are kept."""
    key = answers_key(loaded.model, prompts)
    path = cache_path("sweep", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, "answers", key)
    record = read_record(path)
    if not record:
        record = {"answers": greedy_answers(loaded.model, prompts, stage="answers dense", progress=progress)}
        write_record(path, record, "the dense model's answers")
    dense = record["answers"]
    answers = greedy_answers(model, prompts, stage=stage, progress=progress)
    of_dense = answer_statistics(dense, dense)
    names = ("loops", "answer_tokens", "distinct_3grams")
    columns = {f"dense_{name}": getattr(of_dense, name) for name in names}
    return columns | answer_statistics(answers, dense)._asdict()
