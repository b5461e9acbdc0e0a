"""A GGUF file rewritten as a Hugging Face folder: config, weights, tokenizer.

llama.cpp's converter changes more than names. For the llama family it interleaves the two halves
of every rotary pair in q and k; for Gemma 3 it stores each norm weight plus one. Both are undone
here, in float32 and before the weights are rounded, so that the folder holds the same function.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import generate_merges

Metadata = dict[str, Any]
Progress = Callable[[int, int], None]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# "ffn_norm" is the norm before the feed-forward block, which the two families call differently.
_INSIDE_OF = {
    "llama": _INSIDE | {"ffn_norm": "post_attention_layernorm"},
    "gemma3": _INSIDE
    | {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


def write_model(
    gguf: Path,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
) -> None:
    """Write config, generation config, weights and tokenizer of ``gguf`` into ``folder``.

    ``progress(done, total)`` is called after each tensor. Raises ValueError for an architecture
    or a tokenizer this module does not know.
    """
    reader = GGUFReader(gguf)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    architecture = meta["general.architecture"]
    if architecture not in _INSIDE_OF:
        raise ValueError(
            f"the GGUF file holds a {architecture!r} model, and only {sorted(_INSIDE_OF)} are known"
        )
    config = (_llama_config if architecture == "llama" else _gemma3_config)(meta)
    config.dtype = dtype

    weights: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        # A copy, since unquantised tensors come as read-only views of the file.
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        values = undo_llama_cpp(architecture, tensor.name, values, config)
        name = hf_name(architecture, tensor.name)
        weights[name] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        if progress is not None:
            progress(done, len(reader.tensors))
    config.tie_word_embeddings = "lm_head.weight" not in weights

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable to its owner alone
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    build_tokenizer(meta, config.max_position_embeddings).save_pretrained(folder)


def hf_name(architecture: str, name: str) -> str:
    """Name of a GGUF tensor in the Hugging Face state dict."""
    if inside := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = inside.groups()
        return f"model.layers.{layer}.{_INSIDE_OF[architecture][part]}.{kind}"
    part, kind = name.rsplit(".", 1)
    return f"{_OUTSIDE[part]}.{kind}"


def undo_llama_cpp(
    architecture: str, name: str, values: np.ndarray, config: PreTrainedConfig
) -> np.ndarray:
    """The float32 tensor as the model was trained with it, before llama.cpp's converter."""
    if architecture == "gemma3":
        return values - 1 if name.endswith("norm.weight") else values
    if name.endswith("attn_q.weight"):
        return undo_rotary_permutation(values, config.num_attention_heads)
    if name.endswith("attn_k.weight"):
        return undo_rotary_permutation(values, config.num_key_value_heads)
    return values


def undo_rotary_permutation(rows: np.ndarray, heads: int) -> np.ndarray:
    """(heads, d/2, 2) interleaved rotary pairs back to (heads, 2, d/2) halves, along axis 0."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _sizes(meta: Metadata) -> dict[str, Any]:
    """What both configurations share, by their Hugging Face names."""
    prefix = meta["general.architecture"]
    return {
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta[f"{prefix}.embedding_length"],
        "intermediate_size": meta[f"{prefix}.feed_forward_length"],
        "num_hidden_layers": meta[f"{prefix}.block_count"],
        "num_attention_heads": meta[f"{prefix}.attention.head_count"],
        "num_key_value_heads": meta[f"{prefix}.attention.head_count_kv"],
        "max_position_embeddings": meta[f"{prefix}.context_length"],
        # GGUF keeps it in float32: 1e-5 would come back as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{meta[f'{prefix}.attention.layer_norm_rms_epsilon']:.6g}"),
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _llama_config(meta: Metadata) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]}
    return LlamaConfig(
        **_sizes(meta),
        head_dim=meta["llama.rope.dimension_count"],
        rope_parameters=rope,
        architectures=["LlamaForCausalLM"],
    )


def _gemma3_config(meta: Metadata) -> Gemma3TextConfig:
    """Five layers of sliding attention to one of full attention, as in every Gemma 3.

    The file names neither this pattern, nor the rotary base of the sliding layers (1e4), nor the
    attention scale (the head size for this model): they are fixed by the architecture.
    """
    head_dim = meta["gemma3.attention.key_length"]
    return Gemma3TextConfig(
        **_sizes(meta),
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        sliding_window=meta["gemma3.attention.sliding_window"],
        rope_parameters={
            "full_attention": {
                "rope_type": "default",
                "rope_theta": meta["gemma3.rope.freq_base"],
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        architectures=["Gemma3ForCausalLM"],
    )


def build_tokenizer(meta: Metadata, longest: int) -> PreTrainedTokenizerFast:
    """The tokenizer and chat template a GGUF file describes; ``longest`` is the model's context."""
    kind = (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    builders = {("gpt2", "smollm"): _byte_level_bpe, ("llama", "default"): _sentencepiece_bpe}
    if kind not in builders:
        raise ValueError(
            f"the GGUF file's tokenizer is {kind}, and only {list(builders)} are known"
        )
    tokenizer = builders[kind](meta)
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    named = {
        f"{role}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
    }
    # llama.cpp matches both kinds whole in the text, before any merge.
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == USER_DEFINED and not token.isspace()
        ]
    )
    if meta["tokenizer.ggml.add_bos_token"]:
        bos = named["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, meta["tokenizer.ggml.bos_token_id"])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=meta.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        **named,
    )


def _byte_level_bpe(meta: Metadata) -> Tokenizer:
    """GPT-2's byte-level BPE with every digit on its own, which is what 'smollm' names."""
    vocabulary = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(meta: Metadata) -> Tokenizer:
    """SentencePiece BPE, whose file has no merges: they follow from the pieces and their order.

    Runs of blanks are stored as real spaces but looked up after normalisation, as "▁▁". They come
    first in the vocabulary, so their merges win, as SentencePiece's own whole match of them does.
    """
    tokens = [
        "▁" * len(token) if token.strip(" ") == "" else token
        for token in meta["tokenizer.ggml.tokens"]
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    mergeable = {
        token: index
        for (token, index), type_ in zip(
            vocabulary.items(), meta["tokenizer.ggml.token_type"], strict=True
        )
        if type_ == NORMAL or (type_ == USER_DEFINED and set(token) <= set("▁\n\t"))
    }
    merges = generate_merges(mergeable, {token: -index for token, index in mergeable.items()})
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=meta["tokenizer.ggml.tokens"][meta["tokenizer.ggml.unknown_token_id"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # The normaliser leaves no blank, so this never splits; it is what Gemma's own files carry.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer
