"""Run a command so that it cannot outlive the process that asked for it, however that one ends.

A server that is still there after its parent has gone keeps gigabytes and a port. ``finally`` does
not run on SIGKILL and, by default, not on SIGTERM; a pipe closes on every death. So the parent
holds the write end of this script's standard input, and nothing else does: end of file means
"stop", whether the parent closed it, raised, was interrupted or was killed. The command runs in a
process group of its own, away from the terminal's Ctrl-C, and the whole group is ended.

Standard library only, and started by path: it must not pay for importing vLLM.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _prctl(option: int, value: int) -> None:
    """Linux's prctl where there is one; elsewhere the pipe alone has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _prepare_child() -> None:
    """Between fork and exec: default signals, and an end even if this reaper itself is killed."""
    for sign in _IGNORED:
        signal.signal(sign, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _group_lives(group: int) -> bool:
    """Whether any process of the group is left, after collecting those that ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int, grace: float) -> None:
    """SIGTERM for the group, then SIGKILL for what is left of it after ``grace`` seconds.

    SIGCONT goes with it: a stopped process acts on SIGTERM only once it continues.
    """
    for sign, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, sign)
            os.killpg(group, signal.SIGCONT)
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if not _group_lives(group):
                return
            time.sleep(_POLL_SECONDS)


def main(arguments: list[str]) -> int:
    """``reaper.py GRACE_SECONDS COMMAND...``; returns the command's exit status."""
    grace, command = float(arguments[0]), arguments[1:]
    for sign in _IGNORED:
        signal.signal(sign, signal.SIG_IGN)  # only the pipe decides; the child gets defaults back
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the group come here instead of to init
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_prepare_child,
    )
    while child.poll() is None:
        if select.select([0], [], [], _POLL_SECONDS)[0] and not os.read(0, 1024):
            break
    status = child.poll()
    _end_group(child.pid, grace)
    return 0 if status is None else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
