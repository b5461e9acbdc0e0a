"""A server lives exactly as long as its block: shown with a tiny HTTP server that forks a child."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from vllm_plugin import server
from vllm_plugin.server import ServerError, ServerOptions, ServerProcess, free_port

FAKE = """
import http.server, pathlib, signal, subprocess, sys
port, pids, stubborn = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pids.write_text(f"{__import__('os').getpid()} {child.pid}")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

HOLDER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
sys.path.insert(0, {folder!r})
from test_server import fake_server
with fake_server(Path({tmp!r})):
    print("up", flush=True)
    time.sleep(600)
"""


def fake_server(folder: Path, *, stubborn: bool = False, grace: float = 2.0) -> ServerProcess:
    script = folder / "fake.py"
    script.write_text(FAKE)
    words = [sys.executable, str(script)]
    mode = "stubborn" if stubborn else "polite"
    return ServerProcess(
        lambda port: [*words, str(port), str(folder / "pids"), mode],
        environment=os.environ,
        name="the fake",
        start_timeout=120.0,
        grace=grace,
    )


def processes(folder: Path) -> list[int]:
    return [int(word) for word in (folder / "pids").read_text().split()]


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether all of them have ended; a zombie nobody has collected yet counts as ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_free_port_can_be_bound_and_is_the_one_served(tmp_path: Path) -> None:
    assert 1024 <= free_port() <= 65535
    with fake_server(tmp_path) as running:
        assert running.url == f"http://127.0.0.1:{running.port}"
        assert str(running.port) in running.command
        assert running.alive()


def test_the_tree_and_the_log_end_with_the_block(tmp_path: Path) -> None:
    with fake_server(tmp_path) as running:
        pids, log = processes(tmp_path), running.log_path
        assert all(_runs(pid) for pid in pids)
    assert gone(pids)
    assert log is not None and not log.exists()


def test_the_tree_ends_on_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), fake_server(tmp_path) as running:
        pids = processes(tmp_path)
        raise ZeroDivisionError
    assert gone(pids)
    assert running.log_path is not None and running.log_path.exists()
    running.log_path.unlink()


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with fake_server(tmp_path, stubborn=True, grace=0.5):
        pids = processes(tmp_path)
    assert gone(pids)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_tree_ends_with_its_parent(tmp_path: Path, sign: signal.Signals) -> None:
    code = textwrap.dedent(HOLDER.format(folder=str(Path(__file__).parent), tmp=str(tmp_path)))
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "up\n"
        pids = processes(tmp_path)
        assert all(_runs(pid) for pid in pids)
        holder.send_signal(sign)
        holder.wait(120)
    assert gone(pids)


def test_the_tree_ends_when_the_reaper_itself_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("parent-death signals exist on Linux only")
    with fake_server(tmp_path) as running:
        first, second = processes(tmp_path)
        reaper = psutil.Process(first).parent()
        assert reaper is not None and "reaper.py" in " ".join(reaper.cmdline())
        reaper.kill()
        assert gone([first])
        assert not running.alive()
        os.kill(second, signal.SIGKILL)  # the fake's child does not watch its parent; vLLM's does


def test_a_failed_start_shows_the_end_of_the_log() -> None:
    script = "print('first line'); raise SystemExit('the weights are missing')"
    failing = ServerProcess(
        lambda port: [sys.executable, "-c", script],
        environment=os.environ,
        name="the fake",
        start_timeout=120.0,
    )
    with pytest.raises(ServerError, match="the fake ended before it answered") as caught, failing:
        pytest.fail("the block must not be entered")
    assert str(caught.value).endswith("the weights are missing")
    assert failing.log_path is not None
    failing.log_path.unlink()


def test_a_silent_server_is_given_up_and_ended() -> None:
    silent = ServerProcess(
        lambda port: [sys.executable, "-c", "import time; time.sleep(600)"],
        environment=os.environ,
        start_timeout=0.5,
        grace=1.0,
    )
    with pytest.raises(ServerError, match="did not answer within"), silent:
        pytest.fail("the block must not be entered")
    assert not silent.alive()
    assert silent.log_path is not None
    silent.log_path.unlink()


def test_options_become_arguments_of_vllm_serve() -> None:
    options = ServerOptions(
        model="/m",
        speculative_config={"method": "ngram", "num_speculative_tokens": 5},
        additional_config={"specproof": {"rule": "block"}},
        max_model_len=512,
        max_num_seqs=4,
        extra=("--seed", "3"),
    )
    words = options.arguments(1234)
    given = dict(itertools.pairwise(words))
    assert given["--port"] == "1234" and given["--host"] == "127.0.0.1"
    assert given["--speculative-config"] == '{"method": "ngram", "num_speculative_tokens": 5}'
    assert given["--additional-config"] == '{"specproof": {"rule": "block"}}'
    assert given["--max-model-len"] == "512" and given["--max-num-seqs"] == "4"
    assert "--enforce-eager" in words and words[-2:] == ["--seed", "3"]
    plain = ServerOptions(model="/m").arguments(1)
    assert "--speculative-config" not in plain and "--additional-config" not in plain


def test_the_environment_keeps_the_server_offline() -> None:
    environment = ServerOptions(model="/m", kv_cache_gib=2).environment({"PATH": "/bin"})
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["PATH"] == "/bin"


@pytest.mark.parametrize(("found", "word"), [(True, "serve"), (False, "--model")])
def test_the_command_works_under_either_name_of_the_wheel(
    monkeypatch: pytest.MonkeyPatch, found: bool, word: str
) -> None:
    def version(name: str) -> str:
        if found:
            return "0.32.0"
        raise server.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(server.importlib.metadata, "version", version)
    assert word in server.serve_command("/m")
