"""One sitting of a recording: from a server's address to the trace, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from theory.trace_file import write
from theory.traces import Trace
from vllm_plugin.provenance import provenance
from vllm_plugin.record import ENTRIES, Plan, prompts_of, record, settings_of
from vllm_plugin.record_journal import Journal
from vllm_plugin.record_server import MOST_HEADS, RecordingServer
from vllm_plugin.row_log import RowReader


@dataclass
class Session:
    """One sitting: the server's answers go to the journal, and from there into the trace."""

    plan: Plan
    out: Path
    stage: Console
    journal: Journal | None = field(default=None, init=False)

    async def run(self, url: str, rows: RowReader | None = None) -> None:
        """Ask what is still to be asked; `rows` as for :func:`vllm_plugin.record.record`."""
        server = await RecordingServer.open(url)
        try:
            prompts = await prompts_of(self.plan, server)
            self._say(server)
            self.journal = Journal(self.out, settings_of(self.plan, server))
            done = len(self.journal.finished())
            sitting = self.journal.begin(
                {**provenance(), "concurrency": self.plan.concurrency, "server": _about(server)}
            )
            with _progress(self.stage, self.plan, done) as on_answer:
                await record(self.plan, server, self.journal, prompts, sitting, on_answer, rows)
        finally:
            await server.close()

    def finish(self) -> Trace | None:
        """Write what there is; the journal goes when nothing is left to ask."""
        if self.journal is None:
            return None
        try:
            trace = self.journal.assemble(len(self.plan.questions))
            if trace is not None:
                write(self.out, trace)
                if trace.provenance["complete"]:
                    self.journal.remove()
            return trace
        finally:
            self.journal.close()

    def _say(self, server: RecordingServer) -> None:
        if server.heads < min(ENTRIES, server.vocabulary):
            self.stage.print(
                f"{server.url} grants {server.heads} log probabilities a token, so the laws keep "
                f"{server.heads} entries, not {ENTRIES}; start it with --max-logprobs {MOST_HEADS}"
            )


@contextmanager
def _progress(stage: Console, plan: Plan, done: int) -> Iterator[Callable[[int], None]]:
    """A bar over the answers, with the speed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tokens, began = 0, time.monotonic()
    with Progress(*columns, console=stage) as progress:
        bar = progress.add_task(
            "answers", total=plan.samples * len(plan.questions), completed=plan.samples * done
        )

        def on_answer(count: int) -> None:
            nonlocal tokens
            tokens += count
            rate = tokens / max(time.monotonic() - began, 1e-9)
            progress.update(bar, advance=1, description=f"answers, {rate:.0f} tokens/s")

        yield on_answer


def _about(server: RecordingServer) -> dict[str, Any]:
    return {
        "url": server.url,
        "model": server.model,
        "root": server.root,
        "vllm": server.version,
        "max_model_len": server.longest_text,
    }
