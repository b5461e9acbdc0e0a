"""The engine's side of `specproof profile`: drafts by script, and a line a step in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from proposers import Drafter, StandDrafter
from proposers.length.scripted import ScriptedDrafter
from vllm_plugin.config import Options
from vllm_plugin.profile import FILE, LENGTHS
from vllm_plugin.proposer import Stand
from vllm_plugin.provenance import hardware
from vllm_plugin.step_clock import StepClock


class Scripted(Stand):
    """Drafts of scripted lengths; each step's tokens, requests, kind and seconds go to a file."""

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self._file = Path(os.environ[FILE]).open("a", encoding="utf-8")  # noqa: SIM115
        self._clock: StepClock | None = None

    def read_options(self, vllm_config: Any) -> Options:
        """The script alone decides how many drafts are verified."""
        return Options.model_validate({"length": "fixed"})

    def make_drafter(self, options: Options, draft_length: int, seed: int) -> Drafter:
        """STAND at work, and a script in front of it."""
        stand = super().make_drafter(options, draft_length, seed)
        assert isinstance(stand, StandDrafter)
        return ScriptedDrafter(stand, json.loads(os.environ[LENGTHS]), seed)

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Drafts for every request; the first call also starts the clock."""
        if self._clock is None:
            self._file.write(f"{hardware(self.adapter.runner.device)}\n")
            self._clock = StepClock.install(self.adapter.runner, self._write)
        return super().propose(*args, **kwargs)

    def _write(self, tokens: int, requests: int, decoding: bool, seconds: float) -> None:
        self._file.write(f"{tokens},{requests},{int(decoding)},{seconds:.9f}\n")
        self._file.flush()
