"""After each step: the drafter and the control of draft lengths learn from what was verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from proposers import Drafter, StandDrafter
from vllm_plugin.length_control import LengthControl
from vllm_plugin.lessons import Ints, Laws, Stretch, emitted_rows, verified_rows
from vllm_plugin.row_log import RowLog
from vllm_plugin.served import Served, ServedRequests


@dataclass
class Teacher:
    """Shows a drafter prompts, target laws and emitted tokens; see :class:`V1Adapter`'s for names.

    A request that does not share its text, or whose output is thrown away in this step, teaches
    nobody.
    """

    served: ServedRequests
    order: int
    draft_length: int
    row_log: RowLog | None = None

    def hears(self, batch: Any, request: Any) -> bool:
        """Whether this request's rows may be learned from."""
        return not request.discarded and self.served[batch.req_ids[request.index]].taught

    def teach(
        self,
        drafter: Drafter,
        control: LengthControl,
        batch: Any,
        heard: list[Any],
        stretches: list[Stretch],
        laws: Laws | None,
        emitted: list[Ints],
    ) -> None:
        """A step's lessons, of requests that are heard, and their stretches.

        Each new prompt, the target law of every row, and what it emitted.
        """
        for r in heard:
            served = self.served[batch.req_ids[r.index]]
            if not served.started:
                served.started = True
                self._start(drafter, batch, r.index, served)
        learner = drafter if isinstance(drafter, StandDrafter) else None
        foretold = control.predictor is not None
        if foretold and learner is None and heard:
            self._follow(drafter, control, batch, heard, laws, emitted)
        if laws is None:
            return
        shown = emitted if foretold or drafter.wants_emitted or self.row_log else None
        ids = [batch.req_ids[s.index] for s in stretches]
        rows = verified_rows(batch, self.order, stretches, laws, shown, self.served.groups(ids))
        if foretold and learner is not None:
            control.shadow(learner, rows)
        drafter.observe(rows)
        if self.row_log is not None:
            handles = self.served.handles(ids)
            self.row_log.step(handles.tolist(), stretches, laws, emitted)

    def _start(self, drafter: Drafter, batch: Any, index: int, served: Served) -> None:
        if batch.req_prompt_embeds.get(index) is not None:
            return
        prompt = batch.token_ids_cpu[index, : batch.num_prompt_tokens[index]]
        drafter.start(served.handle, prompt, served.group)
        if self.row_log is not None:
            self.row_log.start(served.handle, prompt)

    def _follow(
        self,
        drafter: Drafter,
        control: LengthControl,
        batch: Any,
        heard: list[Any],
        laws: Laws | None,
        emitted: list[Ints],
    ) -> None:
        """Let the control learn what drafts of the emitted tokens would have been worth."""
        tokens, counts, rows = emitted_rows(heard, emitted, self.draft_length)
        texts = self.served.draft_requests(
            batch,
            batch.token_ids_cpu,
            np.array([r.index for r in heard], np.int64),
            np.array([r.text_length for r in heard], np.int64),
            counts,
        )
        control.follow(drafter, texts, tokens, rows, laws)
