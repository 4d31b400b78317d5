"""BLEU on single words: how many words of a short answer are those of the reference (Papineni et al., 2002)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["bleu_1", "words"]


def bleu_1(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """`min(1, exp(1 - r / c)) * m / c`, in [0, 1].

    `c` and `r` are the numbers of words of hypothesis and reference, `m` the words they share, each counted no more
    often than the reference holds it. An empty side gives 0. Source: Papineni et al., BLEU (2002), with 1-grams only.

    Example:
        >>> bleu_1(["5"], ["5"]), bleu_1(["5"], ["5", "answer"]), bleu_1(["a", "cat"], ["a", "a", "cat", "a"])
        (1.0, 0.5, 0.5)
    """
    shared = (Counter(hypothesis) & Counter(reference)).total()
    if not shared:
        return 0.0
    brevity = min(1.0, math.exp(1 - len(reference) / len(hypothesis)))
    return brevity * shared / len(hypothesis)


def words(text: str) -> list[str]:
    """Words of letters and digits in lower case, everything else taken as a gap.

    Example:
        >>> words("A red-ish cup, 2.5 m")
        ['a', 'red', 'ish', 'cup', '2', '5', 'm']
    """
    return re.findall(r"[^\W_]+", text.lower())
