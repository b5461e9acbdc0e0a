"""A random 2-layer Llama with a small vocabulary: enough to test laws, no language needed."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def build(
    folder: Path,
    *,
    vocabulary: int = 64,
    seed: int = 0,
    sharpness: float = 3.0,
    tokenizer: bool = False,
) -> Path:
    """Write the model to ``folder``; ``sharpness`` scales the logits, so that laws are uneven.

    With ``tokenizer``, ``PIECES`` and padding pieces are its vocabulary.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
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
