"""The tokenizer of the embedded policy: a byte-level BPE without merges whose vocabulary is whole words.

Numbers 0..1000, tags and words (with their leading space) are single tokens; everything else falls back to bytes, so
`decode(encode(text)) == text` holds for every string. A box is exactly `<box>[12,30,40,58]</box>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sightline.language.spans import byte_alphabet
from sightline.scenes.world import COLORS, MARKS, SHAPES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["CHAT_TEMPLATE", "NUMBERS", "SPECIAL", "build_tokenizer", "number_ids", "write_tokenizer"]

NUMBERS = range(1001)
"""Whole numbers that are one token: the coordinates of the 0..1000 convention, and all counts."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

TAGS = (
    *("think", "rethink", "answer", "box", "tool_call", "tool_response", "ref", "back"),
    *("reflection", "belief", "evidence", "focus", "cases", "case", "relevant", "rule", "apply", "Focus"),
)

SYMBOLS = (
    *('{"', ' {"', '":', ' "', '",', '"}', '"}}', '[{"', ' [{"', " [", "]}", "]}}", "]}.", "},", "].", "],", "bbox_2d"),
    *(" .", " ,", " ?", " :", " =", "=", " /", " +", " -", "...", " (", ").", " ->"),
)  # fmt: skip

WORDS = (
    *COLORS, *MARKS, *SHAPES, *(f"{shape}s" for shape in SHAPES),
    *("top", "middle", "bottom", "left", "center", "right", "above", "below", "of", "corner", "side", "edge", "near"),
    *("the", "mark", "marks", "on", "in", "it", "is", "are", "at", "there", "to", "and", "or", "a", "an", "no", "not"),
    *("yes", "color", "shape", "object", "objects", "what", "how", "many", "where", "which", "one", "two", "three"),
    *("four", "five", "six", "none", "zero", "has", "have", "its", "with", "this", "that", "than", "same", "other"),
    *("as", "by", "from", "for", "all", "any", "some", "each", "both", "more", "less", "most", "only", "also"),
    *("so", "because", "therefore", "but", "then", "if", "first", "second", "third", "next", "again", "wait", "let"),
    *("me", "I", "see", "look", "check", "verify", "consistent", "wrong", "correct", "sure", "unsure", "need"),
    *("think", "rethink", "answer", "reason", "box", "boxes", "use", "tools", "tool", "crops", "crop", "image"),
    *("region", "regions", "zoom", "focus", "reflect", "reflection", "belief", "evidence", "case", "cases", "rule"),
    *("apply", "relevant", "induce", "compare", "describe", "list", "find", "locate", "count", "read", "write"),
    *("query", "example", "examples", "follows", "holds", "pattern", "picture", "scene", "background", "small"),
    *("large", "big", "tiny", "visible", "hidden", "cannot", "can", "be", "was", "were", "seen", "clear", "given"),
    *("user", "assistant", "system", "name", "arguments", "image_zoom_in_tool", "label", "act", "stop", "observe"),
    *("action", "actions", "gray", "light", "dark", "shown", "here", "now", "do", "does", "did", "my", "is", "still"),
    *("confident", "likely", "probably", "remains", "changes", "confirmed", "rejected", "missing", "extra", "details"),
)  # fmt: skip

PIECES = r"</?[a-z_]+>|<Focus>|bbox_2d|[0-9]+| ?[A-Za-z]+| ?[^\sA-Za-z0-9<]+|\s|<"
"""What may become one token: tags, the JSON key, numbers, words and runs of symbols (each with one leading space)."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _vocabulary() -> dict[str, int]:
    symbols = {byte: character for character, byte in byte_alphabet().items()}
    pieces = [symbols[b] for b in range(256)]

    def add(text: str) -> None:
        pieces.append("".join(symbols[b] for b in text.encode()))

    for n in NUMBERS:
        add(str(n))
    for tag in TAGS:
        add(f"<{tag}>")
        if tag != "Focus":
            add(f"</{tag}>")
    for text in SYMBOLS:
        add(text)
    for word in WORDS:
        for form in (f" {word}", f" {word.capitalize()}", word, word.capitalize()):
            add(form)
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def build_tokenizer() -> Tokenizer:
    """The tokenizer, always the same.

    Example:
        >>> t = build_tokenizer()
        >>> len(t.encode("<box>[12,30,40,58]</box>").ids), t.decode(t.encode("naïve <b> \\t").ids)
        (11, 'naïve <b> \\t')
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def number_ids(tokenizer: Tokenizer) -> list[int]:
    """Token ids of the numbers 0..1000, in order."""
    ids = [tokenizer.token_to_id(str(n)) for n in NUMBERS]
    assert None not in ids
    return ids  # type: ignore[return-value]


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json in the published layout."""
    import json

    build_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": [t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
