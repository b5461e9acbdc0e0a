"""Which tokenizer made these token ids: a fingerprint that any server, or a tokenizer, can give."""

import hashlib
import json
from collections.abc import Sequence

PROBES = (
    "The quick brown fox jumps over the lazy dog, twice: 0123456789.",
    "def f(x):\n    return {'a': [x**2, None], \"b\": x != 1}\n\n\n\t# done\r\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – naïve façade, señor!",
    "Съешь же ещё этих мягких французских булок; 我能吞下玻璃而不伤身体。",
    "いろはにほへと 한국어 العربية ελληνικά",
    "   spaces    and \u00a0 odd \u200b ones 🙂👩\u200d👩\u200d👧 ½ ∑ ≤ <s></s><|im_start|>[INST]",
)
"""Texts in which tokenizers differ: words, code, accents, other scripts, spaces, special tokens."""


def fingerprint(token_ids: Sequence[Sequence[int]]) -> str:
    """SHA-256 over the ids of `PROBES`, tokenised one by one without added special tokens.

    Two tokenizers with one fingerprint read these texts alike; the texts are never to be changed.
    """
    ids = [[int(token) for token in one] for one in token_ids]
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()
