"""Files: laws, traces and step-time curves, and the sentences that refuse others."""

import json

import numpy as np
import pytest

from theory.inputs import pairs, read_laws, read_step_times, read_trace, write_trace

P = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])


def test_laws_from_npy_npz_csv(tmp_path):
    np.save(tmp_path / "a.npy", P)
    np.savez(tmp_path / "a.npz", p=P, q=P[::-1])
    np.savez(tmp_path / "one.npz", P[0])
    np.savetxt(tmp_path / "a.csv", P, delimiter=",")
    np.savetxt(tmp_path / "row.csv", P[:1], delimiter=",")
    assert np.array_equal(read_laws(tmp_path / "a.npy", "p"), P)
    assert np.array_equal(read_laws(tmp_path / "a.npz", "q"), P[::-1])
    assert np.array_equal(read_laws(tmp_path / "one.npz", "q"), P[0])
    assert np.array_equal(read_laws(tmp_path / "a.csv", "p"), P)
    assert read_laws(tmp_path / "row.csv", "p").shape == (3,)
    with pytest.raises(ValueError, match="must be called 'r'"):
        read_laws(tmp_path / "a.npz", "r")
    with pytest.raises(ValueError, match=r"\.npy, \.npz or \.csv"):
        read_laws(tmp_path / "a.txt", "p")
    np.save(tmp_path / "bad.npy", 2 * P)
    with pytest.raises(ValueError, match=r"bad\.npy sums"):
        read_laws(tmp_path / "bad.npy", "p")


def test_rows_are_cut_to_what_can_be_emitted():
    rows = pairs(P[0], np.array([0.0, 1.0, 0.0]))
    assert [law.tolist() for law in rows[0]] == [[0.5, 0.5], [0.0, 1.0]]


def test_trace_round_trip(tmp_path):
    path = tmp_path / "t.jsonl"
    write_trace(path, [(P[0], P[1]), (P[1], P[1])], 3)
    read = []
    rows = list(read_trace(path, read.append))
    assert sum(read) == path.stat().st_size
    assert np.allclose(rows[0][0], P[0])
    assert np.allclose(rows[0][1], P[1])


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["hello"], "must begin with"),
        ([], "must begin with"),
        ([json.dumps({"format": "other/1", "vocabulary": 3})], "must begin with"),
        (["HEAD", "{"], "line 2"),
        (["HEAD", json.dumps({"p": [[0], [1.0]]})], "line 2"),
        (["HEAD", json.dumps({"p": [[3], [1.0]], "q": [[0], [1.0]]})], "0..2"),
        (["HEAD", json.dumps({"p": [[0, 1], [0.5]], "q": [[0], [1.0]]})], "2 tokens and 1 prob"),
        (["HEAD", json.dumps({"p": [[0.5], [1.0]], "q": [[0], [1.0]]})], "integers in 0..2"),
        (["HEAD", json.dumps({"p": [[0], ["x"]], "q": [[0], [1.0]]})], "line 2"),
        (['{"format": "specproof-trace/1", "vocabulary": 1e999}'], "must begin with"),
        (["HEAD", json.dumps({"p": [[0], [0.5]], "q": [[0], [1.0]]})], "p sums"),
    ],
)
def test_bad_traces_name_the_line(tmp_path, lines, sentence):
    head = json.dumps({"format": "specproof-trace/1", "vocabulary": 3})
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(head if line == "HEAD" else line for line in lines))
    with pytest.raises(ValueError, match=sentence):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.npy", b"", "cannot be read"),
        ("text.npy", b"hello", "cannot be read"),
        ("zip.npz", b"PK\x03\x04 broken", "cannot be read"),
        ("words.csv", b"a,b", "cannot be read"),
        ("ragged.csv", b"0.5,0.5\n1\n", "cannot be read"),
        ("empty.csv", b"", "holds no numbers"),
    ],
)
def test_files_that_are_no_laws_are_refused_by_name(tmp_path, recwarn, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {sentence}"):
        read_laws(tmp_path / name, "p")
    assert not recwarn.list


def test_complex_and_object_arrays_are_refused(tmp_path):
    np.save(tmp_path / "complex.npy", np.array([0.5 + 1j, 0.5 - 1j]))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("complex.npy", "object.npy"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_laws(tmp_path / name, "p")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "positive times"),
        ("0,1\ninf,2", "whole numbers up to"),
        ("0,1\nnan,2", "whole numbers up to"),
        ("0,1\n1e18,2", "whole numbers up to"),
        ("0,1\n0,2", "whole numbers up to"),
        ("0,1\n1.5,2", "whole numbers up to"),
        ("0,1\n2,nan", "positive times"),
        ("1,2,3\n1,2,3", "positive times"),
        ("fast", "cannot be read"),
    ],
)
def test_bad_step_times_are_refused(tmp_path, lines, sentence):
    (tmp_path / "t.csv").write_text(lines)
    with pytest.raises(ValueError, match=sentence):
        read_step_times(tmp_path / "t.csv")


def test_step_times(tmp_path):
    (tmp_path / "a.csv").write_text("1.0\n1.5\n2.0\n")
    assert read_step_times(tmp_path / "a.csv").tolist() == [1.0, 1.5, 2.0]
    (tmp_path / "b.csv").write_text("0,1.0\n4,3.0\n")
    assert read_step_times(tmp_path / "b.csv").tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    np.save(tmp_path / "c.npy", np.array([1.0, 2.0]))
    assert read_step_times(tmp_path / "c.npy").tolist() == [1.0, 2.0]
    (tmp_path / "d.csv").write_text("1,1.0\n4,3.0\n")
    with pytest.raises(ValueError, match="n = 0"):
        read_step_times(tmp_path / "d.csv")
    (tmp_path / "e.csv").write_text("1.0\n-1\n")
    with pytest.raises(ValueError, match="positive"):
        read_step_times(tmp_path / "e.csv")
