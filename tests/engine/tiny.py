"""A random 2-layer Llama with a small vocabulary: enough to test laws, no language needed."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build(folder: Path, *, vocabulary: int = 64, seed: int = 0, sharpness: float = 3.0) -> Path:
    """Write the model to ``folder``; ``sharpness`` scales the logits, so that laws are uneven."""
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
    return folder
