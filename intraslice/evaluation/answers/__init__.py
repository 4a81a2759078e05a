"""Greedy answers to fifty fixed prompts: how often they loop, how soon they differ from the dense model's, how varied
they are. Perplexity scores the next token of other people's text, and does not show that a model repeats itself.
"""

from intraslice.evaluation.answers.greedy import answer_columns, greedy_answers, tokens_of_prompts
from intraslice.evaluation.answers.prompts import PROMPTS
from intraslice.evaluation.answers.statistics import AnswerStatistics, answer_statistics, has_loop

__all__ = [
    "PROMPTS",
    "AnswerStatistics",
    "answer_columns",
    "answer_statistics",
    "greedy_answers",
    "has_loop",
    "tokens_of_prompts",
]
