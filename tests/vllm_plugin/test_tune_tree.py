"""`specproof tune-tree` is a command, and loads no drafter before it has work to do."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from vllm_plugin.cli import app


def test_it_answers_to_its_name() -> None:
    result = CliRunner().invoke(app, ["tune-tree", "nowhere.npz"])
    assert result.exit_code == 2
    assert result.stderr.startswith("specproof tune-tree: ")
    assert "nowhere.npz" in result.stderr


def test_the_command_line_pays_for_no_kernel() -> None:
    program = "import sys, vllm_plugin.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
