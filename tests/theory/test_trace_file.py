"""Trace files: what is written is read again, and whatever else a file holds gets one sentence."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theory.refused import RefusedRows
from theory.trace_file import FORMAT, VERSION, TraceError, read, write
from theory.traces import Sampling, Trace


def small(answers: int = 3, entries: int = 4, vocabulary: int = 9, seed: int = 0) -> Trace:
    """A trace of random laws, with answers of 1, 2, ... tokens to two prompts."""
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, answers + 1)
    laws = rng.dirichlet(np.full(vocabulary, 0.4), int(sizes.sum()))
    order = np.argsort(-laws, axis=1)[:, :entries]
    tokens = np.array([rng.choice(vocabulary, p=law) for law in laws], np.int32)
    return Trace(
        vocabulary=vocabulary,
        sampling=Sampling(0.7, 0, 0.95),
        max_tokens=answers,
        prompt_tokens=np.array([1, 2, 3, 4, 5], np.int32),
        prompt_begins=np.array([0, 2, 5], np.int64),
        categories=np.array(["qa", "writing"]),
        questions=np.array(["7", "ö"]),
        answer_prompts=(np.arange(answers) % 2).astype(np.int64),
        answer_begins=np.cumsum([0, *sizes]).astype(np.int64),
        tokens=tokens,
        ids=order.astype(np.int32),
        log_masses=np.log(np.take_along_axis(laws, order, 1)).astype(np.float32),
        emitted_log_masses=np.log(laws[np.arange(len(laws)), tokens]).astype(np.float32),
        tokenizer="abc",
        provenance={"command": ["specproof", "record"], "counters": {"drafts": 3}},
    )


def with_refused(trace: Trace) -> Trace:
    """The trace with rows behind two refused drafts, one of them in the longest answer."""
    last = int(trace.answer_begins[-1]) - 1
    rows = RefusedRows(
        starts=np.array([0, last - 1], np.int64),
        after=np.array([0, last], np.int64),
        begins=np.array([0, 1, 3], np.int64),
        drafts=np.array([5, 6, 7], np.int32),
        ids=np.array([[1, 2], [3, -1]], np.int32),
        log_masses=np.array([[-0.5, -1.5], [-0.1, -np.inf]], np.float32),
    )
    return replace(trace, refused=rows)


def assert_same(one: Trace, other: Trace) -> None:
    for field in fields(Trace):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype.kind == theirs.dtype.kind, field.name
            np.testing.assert_array_equal(mine, theirs)
        elif isinstance(mine, RefusedRows):
            for part in fields(RefusedRows):
                expected = getattr(mine, part.name)
                np.testing.assert_array_equal(expected, getattr(theirs, part.name))
        else:
            assert mine == theirs, field.name


def refusal(path: Path) -> str:
    """The sentence that a file is refused with; no other exception may come out of `read`."""
    with pytest.raises(TraceError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said
    return said


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A file with intact checksums whose arrays or header were changed by hand."""
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    header = json.loads(arrays["header"].tobytes())
    change(arrays, header)
    if "header" in arrays:
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "trace.npz"
    write(file, small())
    return file


def test_what_is_written_is_read_again(path: Path) -> None:
    assert_same(read(path), small())
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_tails_are_kept(path: Path) -> None:
    tails = np.stack([np.full(6, -np.inf), np.arange(6)], axis=1).astype(np.float32)
    write(path, replace(small(), tail_log_weights=tails))
    assert_same(read(path), replace(small(), tail_log_weights=tails))
    rewritten(path, lambda arrays, header: arrays.update(tail_log_weights=-tails))
    assert "no bounds" in refusal(path)
    rewritten(path, lambda arrays, header: arrays.update(tail_log_weights=tails[:2]))
    assert "has shape" in refusal(path)


def test_the_processed_law_stands_in_the_file_for_other_readers(path: Path) -> None:
    held = np.load(path, allow_pickle=False)
    processed = small().processed
    np.testing.assert_allclose(held["emitted_p"], processed.emitted, rtol=1e-6)
    np.testing.assert_allclose(held["kept"], processed.kept, rtol=1e-6)


def test_a_trace_without_answers_is_one(tmp_path: Path) -> None:
    empty = small(answers=0)
    empty = replace(empty, max_tokens=1)
    write(tmp_path / "empty.npz", empty)
    assert len(read(tmp_path / "empty.npz")) == 0


@pytest.mark.slow
def test_no_flipped_byte_passes_as_another_trace(path: Path) -> None:
    """Every byte, all of it or a bit: refused in a sentence, or (zip's dates) the same trace."""
    data, whole = path.read_bytes(), small()
    damaged = path.with_name("flipped.npz")
    refused = 0
    for place in range(len(data)):
        mask = 0xFF if place % 2 else 1 << place // 2 % 8
        damaged.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        try:
            found = read(damaged)
        except TraceError:
            refused += 1
        else:
            assert_same(found, whole)
    assert refused > len(data) / 2


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_damaged(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "is damaged: " in refusal(path)


@pytest.mark.parametrize("text", [b"", b"P", b"some text\n", b"\x93NUMPY\x01\x00"])
def test_another_kind_of_file_is_no_trace(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(text)
    assert refusal(path) == f"{path} is no trace: it is no .npz file"


def test_another_npz_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for arrays in ({"p": np.ones(3)}, {"header": np.ones(3)}, {"header": np.array([object()])}):
        np.savez(path, **arrays, allow_pickle=True)
        assert " is no trace: " in refusal(path) or "pickle" in refusal(path).lower()


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.npz").endswith("cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("version", "advice"), [(VERSION + 1, "update specproof"), (1, "record it again")]
)
def test_other_versions(path: Path, version: int, advice: str) -> None:
    rewritten(path, lambda arrays, header: header.update(version=version))
    said = refusal(path)
    assert f"is a trace of version {version}" in said
    assert said.endswith(advice)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("vocabulary", 3, "outside the vocabulary"),
        ("vocabulary", "9", "lacks or bends vocabulary"),
        ("temperature", -1.0, "no tokens can be sampled"),
        ("temperature", float("nan"), "no tokens can be sampled"),
        ("top_p", 0.0, "no tokens can be sampled"),
        ("top_k", 1.5, "lacks or bends top_k"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 2, "longer than max_tokens"),
        ("provenance", 3, "lacks or bends"),
    ],
)
def test_headers_that_do_not_fit(path: Path, name: str, value: Any, said: str) -> None:
    rewritten(path, lambda arrays, header: header.update({name: value}))
    assert said in refusal(path)


def test_a_header_without_a_key(path: Path) -> None:
    rewritten(path, lambda arrays, header: header.pop("tokenizer"))
    assert "lacks or bends 'tokenizer'" in refusal(path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens", np.zeros((2, 2), np.int32), "dimensions"),
        ("tokens", np.zeros(6, np.int64), "int64, not int32"),
        ("tokens", np.full(6, -1, np.int32), "tokens holds tokens outside"),
        ("tokens", np.zeros(5, np.int32), "has shape"),
        ("ids", np.zeros((6, 0), np.int32), "empty"),
        ("ids", np.full((6, 4), -1, np.int32), "log_masses stand where"),
        ("log_masses", np.full((6, 4), 0.0, np.float32), "no log probabilities"),
        ("log_masses", np.full((6, 4), np.nan, np.float32), "log_masses stand where"),
        ("log_masses", np.tile(np.float32([-4, -3, -2, -1]), (6, 1)), "not sorted"),
        ("emitted_log_masses", np.full(6, 0.5, np.float32), "no log probabilities"),
        ("emitted_log_masses", np.full(6, np.nan, np.float32), "no log probabilities"),
        ("prompt_begins", np.zeros(0, np.int64), "empty"),
        ("prompt_begins", np.array([0, 0, 5]), "does not rise"),
        ("answer_begins", np.array([0, 3, 1, 6]), "does not rise"),
        ("answer_prompts", np.array([0, 1, 2]), "points outside"),
        ("categories", np.array(["a"]), "has shape"),
    ],
)
def test_arrays_that_do_not_fit(path: Path, name: str, value: Any, said: str) -> None:
    rewritten(path, lambda arrays, header: arrays.update({name: value}))
    assert said in refusal(path)


def test_arrays_too_few_or_too_many(path: Path) -> None:
    data = path.read_bytes()
    rewritten(path, lambda arrays, header: arrays.pop("kept"))
    assert "it holds " in refusal(path)
    path.write_bytes(data)
    rewritten(path, lambda arrays, header: arrays.update(more=np.ones(2)))
    assert "it holds " in refusal(path)
    path.write_bytes(data)
    rewritten(path, lambda arrays, header: arrays.pop("header"))
    assert refusal(path).endswith("it has no header")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong = replace(small(), vocabulary=2)
    with pytest.raises(ValueError, match="cannot be written: "):
        write(tmp_path / "x.npz", wrong)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        write(path, small(seed=1))
    assert_same(read(path), small())
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_format_is_named(path: Path) -> None:
    header = json.loads(np.load(path)["header"].tobytes())
    assert (header["format"], header["version"]) == (FORMAT, VERSION)


def test_rows_behind_refused_drafts_are_kept(tmp_path: Path) -> None:
    made, path = with_refused(small()), tmp_path / "t.npz"
    write(path, made)
    assert_same(made, read(path))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("starts", [0, 99], "point outside"),
        ("starts", [-1, 4], "point outside"),
        ("starts", [0, 0], "point outside"),  # another answer than `after`
        ("after", [5, 0], "not sorted"),
        ("begins", [0, 0, 3], "have no drafts"),
        ("begins", [0, 1, 2], "does not rise"),
        ("begins", [0, 3], "different lengths"),
        ("drafts", [5, 6, 9], "refused_drafts holds tokens outside"),
        ("ids", [[1, 9], [3, -1]], "refused_ids holds tokens outside"),
        ("ids", [[1, -1], [3, -1]], "where there is no token"),
        ("log_masses", [[-1.5, -0.5], [-0.1, -np.inf]], "not sorted"),
        ("log_masses", [[0.5, -1.5], [-0.1, -np.inf]], "no log probabilities"),
    ],
)
def test_refused_rows_that_cannot_be_are_named(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    made = with_refused(small())
    assert made.refused is not None
    kind = getattr(made.refused, name).dtype
    wrong = replace(made, refused=replace(made.refused, **{name: np.array(value, kind)}))
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "t.npz", wrong)


def test_refused_rows_are_all_there_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    write(path, with_refused(small()))
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files if name != "refused_after"}
    np.savez(path, **arrays)
    assert "it holds" in refusal(path)
