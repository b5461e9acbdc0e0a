"""Conversion of GGUF files: the folder holds the very model and tokenizer the file came from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tiny_gguf import gemma_tokens, random_gemma3, random_llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from vllm_plugin import gguf_model

MODELS: dict[str, Callable[[], PreTrainedModel]] = {"llama": random_llama, "gemma3": random_gemma3}
TEXTS = ["hello 12 hello", "  hello   12\n\n\nhell", "é🙂 <b>hello</b>", "<0x0A>", "a\n b"]


def logit_gap(folder: Path, original: PreTrainedModel) -> float:
    """Largest difference of logits on a prompt longer than Gemma's window, both in float32."""
    ids = torch.randint(original.config.vocab_size, (2, 24), generator=torch.Generator())
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return float((read(ids).logits - original(ids).logits).abs().max())


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, PreTrainedModel, Path, Path]:
    """Architecture, random model, its GGUF file and an empty folder."""
    torch.manual_seed(0)
    model, gguf, folder = MODELS[request.param](), tmp_path / "model.gguf", tmp_path / "folder"
    write_gguf(gguf, request.param, model)
    folder.mkdir()
    return request.param, model, gguf, folder


def test_logits_survive_the_round_trip(case: tuple[str, PreTrainedModel, Path, Path]) -> None:
    _, model, gguf, folder = case
    gguf_model.write_model(gguf, folder, dtype=torch.float32)
    assert logit_gap(folder, model) < 1e-4


def test_leaving_out_what_llama_cpp_did_shows(
    case: tuple[str, PreTrainedModel, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: no permutation of q and k, no offset of the norms."""
    _, model, gguf, folder = case
    monkeypatch.setattr(gguf_model, "undo_llama_cpp", lambda _a, _n, values, _c: values)
    gguf_model.write_model(gguf, folder, dtype=torch.float32)
    assert logit_gap(folder, model) > 0.1


def test_folder_says_how_to_stop(case: tuple[str, PreTrainedModel, Path, Path]) -> None:
    architecture, _, gguf, folder = case
    gguf_model.write_model(gguf, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = {"llama": "<|im_end|>", "gemma3": "<eos>"}[architecture]
    assert tokenizer.eos_token == end
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_smollm_splits_every_digit(tmp_path: Path) -> None:
    """A merge of "1 2" exists, and yet digits never meet."""
    write_gguf(tmp_path / "model.gguf", "llama", random_llama())
    gguf_model.write_model(tmp_path / "model.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("hello 12<|im_end|>") == ["hello", "Ġ", "1", "2", "<|im_end|>"]
    chat = tokenizer.apply_chat_template([{"content": "hello"}], tokenize=False)
    assert chat == "<|im_start|>hello"


def test_gemma_tokens_are_sentencepiece_tokens(tmp_path: Path) -> None:
    """The same pieces and scores through SentencePiece itself."""
    write_gguf(tmp_path / "model.gguf", "gemma3", random_gemma3())
    gguf_model.write_model(tmp_path / "model.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = sentencepiece.SentencePieceProcessor()
    reference.LoadFromSerializedProto(sentencepiece_proto())
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == [tokenizer.bos_token_id, *reference.encode(text)], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def sentencepiece_proto() -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    for token, type_, score in zip(*gemma_tokens(), strict=True):
        unknown = token == "<unk>"
        blank = token.replace(" ", "▁")
        proto.pieces.add(piece=blank, type=2 if unknown else type_, score=score)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(proto.pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    normalizer.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString())


def test_rotary_pairs_become_halves() -> None:
    pairs = np.array([["a0", "b0"], ["a1", "b1"], ["a2", "b2"], ["a3", "b3"]])[:, :, None]
    rows = pairs.reshape(8, 1)  # one head: a and b interleaved
    halves = gguf_model.undo_rotary_permutation(rows, heads=1)[:, 0].tolist()
    assert halves == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "gemma3", random_gemma3())
    data = (tmp_path / "model.gguf").read_bytes().replace(b"gemma3", b"gemma9")
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match="'gemma9' model, and only"):
        gguf_model.write_model(tmp_path / "model.gguf", tmp_path)
