"""The benchmark of the rules runs, and what it gives stock is what stock should get."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAW_OF_STOCK = """
import numpy as np, torch
import rules
from vllm_plugin import stock_rule
from theory.equivalence import goodness_of_fit

logits, chains = rules.chains_of(12, 300, seed=2)
batch, steps = chains.tokens.shape
assert chains.lengths.tolist() == [8, 4]
assert torch.allclose(chains.law.sum(-1), torch.ones(batch, steps, dtype=torch.float64))
drawn = (chains.law_ids == chains.tokens[:, :, None]).any(-1)
assert drawn.all()

# stock's first token, over fresh drafts of its first row, follows p
n = 40_000
p = logits[0].softmax(-1).double().numpy()
ids, law = chains.law_ids[0, 0], chains.law[0, 0]
tokens = ids[torch.multinomial(law, n, replacement=True)][:, None]
fresh = rules.Chains(
    torch.zeros(n).long(), torch.ones(n).long(), torch.ones(n).bool(), tokens,
    ids.expand(n, 1, -1), law.expand(n, 1, -1),
)
out = stock_rule.stock_verify(
    logits[:1].expand(n, -1).contiguous(), fresh, stock_rule.dense_law(fresh, 300),
    torch.zeros((n, 1), dtype=torch.int32),
)
counts = np.bincount(out[:, 0].numpy(), minlength=300)
assert not goodness_of_fit(counts, p, false_alarm=1e-12).rejected
print("stock follows p")
"""


@pytest.mark.slow
def test_it_measures_every_rule(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/rules.py", "--vocabularies", "300", "--rows", "1,12",
         "--seconds", "0.05", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1), run.stderr  # 1: a rule was slower than stock
    result = json.loads((tmp_path / "rules.json").read_text())
    assert [row["rows"] for row in result["rows"]] == [1, 12]
    assert [row["requests"] for row in result["rows"]] == [1, 2]
    slower = [
        row for row in result["rows"] if max(row["token_of_stock"], row["block_of_stock"]) > 1
    ]
    assert run.returncode == (1 if slower else 0)
    assert {node["rule"] for node in result["nodes"]} >= {"kseq", "sparse_optimal"}
    assert result["provenance"]["git"]["commit"]
    assert (tmp_path / "rules.png").stat().st_size > 1000


@pytest.mark.slow
def test_stock_gets_its_inputs_right() -> None:
    """In a process of its own: vLLM places its CPU kernels before numba is loaded."""
    run = subprocess.run(
        [sys.executable, "-c", LAW_OF_STOCK],
        cwd=ROOT / "benchmarks", capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "stock follows p" in run.stdout
