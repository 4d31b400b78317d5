"""Word stems by Porter's algorithm ("An algorithm for suffix stripping", Program 14(3), 1980), ASCII words only.

With the usual departures of today's toolkits, on which published ROUGE figures rest: a short list of irregular forms,
`ie` kept in four-letter words (dies -> die), `y` turned into `i` only behind a consonant, and `bli`, `fulli`, `logi`
among the suffixes of step 2.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType

__all__ = ["stem"]

_IRREGULAR = MappingProxyType(
    {
        **dict.fromkeys(("sky", "skies"), "sky"),
        **dict.fromkeys(("inning", "innings"), "inning"),
        **dict.fromkeys(("outing", "outings"), "outing"),
        **dict.fromkeys(("canning", "cannings"), "canning"),
        **{word: word for word in ("news", "howe", "proceed", "exceed", "succeed")},
        "dying": "die",
        "lying": "lie",
        "tying": "tie",
    }
)

_STEP_2 = (
    *(("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble")),
    *(("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate")),
    *(("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al")),
    *(("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful")),
)
_STEP_3 = (
    *(("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")),
)
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion"),
    *("ou", "ism", "ate", "iti", "ous", "ive", "ize"),
)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a word in lower case.

    Example:
        >>> [stem(word) for word in ("horses", "riding", "relational", "happily", "sky")]
        ['hors', 'ride', 'relat', 'happili', 'sky']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_plural, _past, _final_y, _step_2, _step_3, _step_4, _final_e, _double_l):
        word = step(word)
    return word


def _kinds(word: str) -> str:
    """`c` or `v` for each letter."""
    out = ""
    for i, letter in enumerate(word):
        is_vowel = letter in "aeiou" or (letter == "y" and i > 0 and out[-1] == "c")
        out += "v" if is_vowel else "c"
    return out


def _measure(word: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    return _kinds(word).count("vc")


def _has_vowel(word: str) -> bool:
    return "v" in _kinds(word)


def _ends_cvc(word: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y at the end; of two letters, vowel and consonant."""
    kinds = _kinds(word)
    return (len(word) >= 3 and kinds.endswith("cvc") and word[-1] not in "wxy") or (len(word) == 2 and kinds == "vc")


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    cut = next((word[: -len(s)] for s in ("ed", "ing") if word.endswith(s) and _has_vowel(word[: -len(s)])), None)
    if cut is None:
        return word
    if cut.endswith(("at", "bl", "iz")):
        return cut + "e"
    if len(cut) > 1 and cut[-1] == cut[-2] and _kinds(cut)[-1] == "c":
        return cut if cut[-1] in "lsz" else cut[:-1]
    return cut + "e" if _measure(cut) == 1 and _ends_cvc(cut) else cut


def _final_y(word: str) -> str:
    is_replaced = word.endswith("y") and len(word) > 2 and _kinds(word)[-2] == "c"
    return word[:-1] + "i" if is_replaced else word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-4] + "al")
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replaced(word, _STEP_2)


def _step_3(word: str) -> str:
    return _replaced(word, _STEP_3)


def _replaced(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The first suffix that fits decides, whether the rest is long enough or not."""
    for suffix, new in rules:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + new if _measure(rest) > 0 else word
    return word


def _step_4(word: str) -> str:
    for suffix in _STEP_4:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            is_cut = _measure(rest) > 1 and (suffix != "ion" or rest.endswith(("s", "t")))
            return rest if is_cut else word
    return word


def _final_e(word: str) -> str:
    if not word.endswith("e"):
        return word
    measure = _measure(word[:-1])
    return word[:-1] if measure > 1 or (measure == 1 and not _ends_cvc(word[:-1])) else word


def _double_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
