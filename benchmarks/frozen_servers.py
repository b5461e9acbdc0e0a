"""Several servers of which at most one computes: the others stand still, but keep all they learned.

A machine whose speed drifts is measured fairly by short turns, and a server takes longer to start
than a turn lasts. So all are started once, and SIGSTOP halts every process of those whose turn it
is not; a halted process takes no processor time at all. No connection outlives a turn: clients are
opened after a thaw and closed before the next freeze, so that nobody talks to a halted server.
However the block is left, ``vllm_plugin.reaper`` lets the halted go on and ends them.
"""

import contextlib
import time
from collections.abc import Iterator

import httpx
import psutil

from vllm_plugin.server import ServerError, ServerProcess

_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 0.01
_HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


class FrozenServers(contextlib.ExitStack):
    """Servers by name, started one after the other, frozen except while ``thawed``."""

    def __init__(self) -> None:
        super().__init__()
        self._servers: dict[str, ServerProcess] = {}

    def start(self, name: str, server: ServerProcess) -> None:
        """Start one more server, and freeze it once it answers.

        Raises
        ------
        ServerError
            When it does not start, or cannot be halted.
        """
        self._servers[name] = self.enter_context(server)
        freeze(server)

    @contextlib.contextmanager
    def thawed(self, name: str) -> Iterator[ServerProcess]:
        """This server, answering, for the length of the block.

        Raises
        ------
        ServerError
            When it has ended, does not answer again, or cannot be halted.
        """
        server = self._servers[name]
        thaw(server)
        yield server
        freeze(server)

    def memory_gib(self) -> dict[str, float]:
        """Memory of each server's processes in GiB; a page that n processes share counts 1/n."""
        return {
            name: sum(process.memory_full_info().pss for process in server.tree()) / 2**30
            for name, server in self._servers.items()
        }


def freeze(server: ServerProcess) -> None:
    """Halt every process of the server, and return when all stand still."""
    limit = time.monotonic() + _STOP_SECONDS
    while running := [one for one in server.tree() if _status(one) not in _HALTED]:
        if time.monotonic() > limit:
            raise ServerError(f"{server.name} could not be halted: process {running[0].pid} runs")
        for process in running:  # one that was forked meanwhile is found the next time round
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(_POLL_SECONDS)


def thaw(server: ServerProcess) -> None:
    """Let every process of the server go on, and return when it answers."""
    for process in server.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    limit = time.monotonic() + _ANSWER_SECONDS
    with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
        while server.alive() and time.monotonic() < limit:
            with contextlib.suppress(httpx.TransportError):
                if client.get(server.url + "/health").status_code == httpx.codes.OK:
                    return
            time.sleep(_POLL_SECONDS)
    tail = server.log_tail() or "(the log is empty)"
    raise ServerError(f"{server.name} did not answer after a pause; its log ends:\n{tail}")


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_ZOMBIE)
