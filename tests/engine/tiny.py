"""A random 2-layer model with a small vocabulary: enough to test laws, no language needed."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)


def build(
    folder: Path,
    *,
    vocabulary: int = 64,
    seed: int = 0,
    sharpness: float = 3.0,
    tokenizer: bool = False,
    heads: int = 2,
    window: int | None = None,
) -> Path:
    """Write the model to ``folder``; ``sharpness`` scales the logits, so that laws are uneven.

    A Llama of ``heads`` query heads and half as many for keys and values; with ``window`` a Mistral
    that sees so many tokens. With ``tokenizer``, ``PIECES`` and padding are its vocabulary.
    """
    torch.manual_seed(seed)
    kind, named = (LlamaConfig, LlamaForCausalLM), {}
    if window is not None:
        kind, named = (MistralConfig, MistralForCausalLM), {"sliding_window": window}
    config = kind[0](
        vocab_size=vocabulary,
        hidden_size=32 * heads,
        intermediate_size=64 * heads,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        **named,
    )
    model = kind[1](config)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    model.save_pretrained(folder)
    if tokenizer:
        _tokenizer(vocabulary).save_pretrained(folder)
    return folder


SPECIAL = ("<unk>", "<s>", "</s>")
MERGES = (("a", "b"), ("b", "a"), ("a", "a"), ("b", "b"), ("t", "h"), ("th", "e"))
PIECES = (
    *SPECIAL,
    *string.ascii_lowercase,
    *string.digits,
    "Ġ",  # a blank, as byte-level tokenizers write it
    *'{}":,[]-.',
    *("".join(pair) for pair in MERGES),
)


def token(piece: str) -> int:
    """The id of a piece of the tokenizer."""
    return PIECES.index(piece)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few characters and merges, padded with upper-case pieces."""
    pieces = [*PIECES, *string.ascii_uppercase][:vocabulary]
    bpe = models.BPE({p: i for i, p in enumerate(pieces)}, list(MERGES), unk_token=SPECIAL[0])
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    unknown, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, bos_token=begin, eos_token=end
    )
