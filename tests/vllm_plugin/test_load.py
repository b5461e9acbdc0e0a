"""The load generator against a small server that speaks just enough of vLLM's HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vllm_plugin.load import Answer, Question, Workload, drive, measure
from vllm_plugin.measurement import MeasurementError

QUESTIONS = tuple(Question(name, "qa", (f"{name}?", "really?")) for name in ("a", "b", "c"))


class FakeVllm(ThreadingHTTPServer):
    """Answers every chat with 5 tokens: a prefill's one and two decode steps of two."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.stray_tokens = 0
        self.refuse = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeVllm

    def log_message(self, *words: object) -> None:
        pass

    def _send(self, body: str, kind: str = "text/plain", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        done = len(self.server.requests)
        values = {
            "vllm:generation_tokens": 5 * done + self.server.stray_tokens * bool(done),
            "vllm:inter_token_latency_seconds_count": 2 * done,
            "vllm:time_to_first_token_seconds_count": done,
        }
        self._send(
            f"# TYPE vllm:generation_tokens counter\n"
            f"vllm:generation_tokens_total {values.pop('vllm:generation_tokens')}\n"
            + "".join(
                f"# TYPE {name.removesuffix('_count')} histogram\n"
                f'{name.removesuffix("_count")}_bucket{{le="+Inf"}} {value}\n{name} {value}\n'
                f"{name.removesuffix('_count')}_sum {value}\n"
                for name, value in values.items()
            )
        )

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuse:
            self._send('{"error": {"message": "too long"}}', "application/json", 400)
            return
        self.server.requests.append(asked)
        base = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "model"}
        deltas = ((("x",), None), (("y", "z"), None), (("u", "v"), "length"))
        chunks: list[dict[str, Any]] = [
            base | {"choices": [{"index": 0, "delta": {"content": "".join(t)}, "finish_reason": f}]}
            for t, f in deltas
        ]
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        chunks.append(base | {"choices": [], "usage": usage})
        body = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
        self._send(body, "text/event-stream")


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    server = FakeVllm()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_samples_of_a_question_follow_each_other(fake: FakeVllm) -> None:
    answers = drive(fake.url, "model", Workload(QUESTIONS, samples=2, max_tokens=5))
    assert [(one.question, one.sample) for one in answers] == [
        (name, sample) for name in "abc" for sample in range(2)
    ]
    assert {one.text for one in answers} == {"xyzuv"}
    assert {one.finish_reason for one in answers} == {"length"}
    first = fake.requests[0]
    assert first["max_tokens"] == 5 and first["temperature"] == 0.7 and "seed" not in first


def test_all_turns_carry_the_conversation(fake: FakeVllm) -> None:
    drive(fake.url, "model", Workload(QUESTIONS[:1], all_turns=True))
    contents = [message["content"] for message in fake.requests[-1]["messages"]]
    assert contents == ["a?", "xyzuv", "really?"]


def test_every_question_is_asked_at_any_concurrency(fake: FakeVllm) -> None:
    seen: list[Answer] = []
    workload = Workload(QUESTIONS, samples=2, concurrency=2)
    drive(fake.url, "model", workload, seen.append)
    assert sorted((one.question, one.sample) for one in seen) == [
        (name, sample) for name in "abc" for sample in range(2)
    ]


def test_the_warm_up_is_not_measured(fake: FakeVllm) -> None:
    measured, answers = measure(fake.url, "model", Workload(QUESTIONS), "none")
    assert len(fake.requests) > len(answers) == 3
    assert measured.tokens == measured.counters.generation_tokens == 15
    assert measured.counters.decode_steps == 6
    assert measured.counters.block_efficiency == pytest.approx(2.0)
    asked = {request["messages"][0]["content"] for request in fake.requests[:-3]}
    assert not asked & {turn for one in QUESTIONS for turn in one.turns}


def test_a_miscounting_server_is_not_believed(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_plugin.load._SETTLE_SECONDS", 0.1)
    fake.stray_tokens = 1
    with pytest.raises(MeasurementError, match=r"received 20 tokens but the server .* counted 21"):
        measure(fake.url, "model", Workload(QUESTIONS), "none")


def test_a_refused_request_ends_the_run(fake: FakeVllm) -> None:
    fake.refuse = True
    with pytest.raises(MeasurementError, match="too long"):
        drive(fake.url, "model", Workload(QUESTIONS))
