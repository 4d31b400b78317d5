"""How much two texts share: word error rate (transcriptions) and ROUGE F1 (free answers), as short pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sightline.rewards.stemming import stem

__all__ = ["rouge_f1", "rouge_l", "rouge_mean", "rouge_words", "word_accuracy", "word_error_rate"]

MAX_WORDS = 512
"""Texts are compared up to here; both tables grow with the product of the lengths."""


def word_error_rate(reference: str, candidate: str) -> float:
    """`edits(reference, candidate) / max(1, words of the reference)`: insertions, deletions, substitutions of words.

    Words stand between blanks and are compared as they are. At least 0; above 1 where the candidate is much longer.

    Example:
        >>> word_error_rate("march 4", "the date is march 4"), word_error_rate("march 4", "march")
        (1.5, 0.5)
    """
    wanted, found = reference.split()[:MAX_WORDS], candidate.split()[:MAX_WORDS]
    return _edits(wanted, found) / max(1, len(wanted))


def word_accuracy(gold: str, answer: str) -> float:
    """`1 - min(WER(gold, answer), WER(answer, gold))`, not below 0: both texts in lower case. Range [0, 1].

    The smaller rate divides by the longer text, so a right answer inside a sentence keeps its share of the words.

    Example:
        >>> [round(word_accuracy("march 4", a), 3) for a in ("March 4", "march", "the date is march 4", "")]
        [1.0, 0.5, 0.4, 0.0]
    """
    gold, answer = gold.lower(), answer.lower()
    return max(0.0, 1.0 - min(word_error_rate(gold, answer), word_error_rate(answer, gold)))


def rouge_words(text: str, *, stems: bool = True) -> list[str]:
    """Words of letters a-z and digits in lower case; those of more than three characters as their stems.

    Example:
        >>> rouge_words("Two men, riding HORSES!"), rouge_words("Two horses", stems=False)
        (['two', 'men', 'ride', 'hors'], ['two', 'horses'])
    """
    words = re.findall(r"[a-z0-9]+", text.lower())[:MAX_WORDS]
    return [stem(word) if stems and len(word) > 3 else word for word in words]


def rouge_f1(gold: Sequence[str], answer: Sequence[str], n: int) -> float:
    """ROUGE-n: F1 of the runs of n words that both share, counted with their multiplicity; 0 if either has none.

    Example:
        >>> rouge_f1("a red cup".split(), "a red red box it".split(), 1)
        0.5
    """
    wanted = Counter(zip(*(gold[i:] for i in range(n)), strict=False))
    found = Counter(zip(*(answer[i:] for i in range(n)), strict=False))
    return _f1((wanted & found).total(), wanted.total(), found.total())


def rouge_l(gold: Sequence[str], answer: Sequence[str]) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words.

    Example:
        >>> rouge_l("a cup on the table".split(), "a table with the cup".split())
        0.4
    """
    row = [0] * (len(answer) + 1)
    for word in gold:
        above = 0
        for j, other in enumerate(answer):
            above, row[j + 1] = row[j + 1], above + 1 if word == other else max(row[j], row[j + 1])
    return _f1(row[-1], len(gold), len(answer))


def rouge_mean(gold: str, answer: str, *, stems: bool = True, short: bool = True) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L. Range [0, 1].

    Args:
        gold: the right answer.
        answer: the given one.
        stems: compare stems (Porter); the released code of Ground-R1 does.
        short: leave ROUGE-2 out where the right answer is a single word and has no pair of words; else it counts 0
            there, as in the released code, and a perfect answer of one word earns 2/3.

    Example:
        >>> rouge_mean("red", "Red."), round(rouge_mean("red", "Red.", short=False), 3)
        (1.0, 0.667)
    """
    wanted, found = rouge_words(gold, stems=stems), rouge_words(answer, stems=stems)
    orders = (1,) if short and len(wanted) == 1 else (1, 2)
    values = [*(rouge_f1(wanted, found, n) for n in orders), rouge_l(wanted, found)]
    return sum(values) / len(values)


def _f1(shared: int, wanted: int, found: int) -> float:
    return 2 * shared / (wanted + found) if shared else 0.0


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance of two lists of words."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal if word == other else 1 + min(diagonal, row[j], row[j - 1])
    return row[-1]
