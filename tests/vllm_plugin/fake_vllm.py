"""A stand-in for a vLLM server: its completions API over a small Markov model, right or wrong."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.theory.markov_engine import Laws, texts

METRICS = """# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total {tokens}
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_count {steps}
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_count {requests}
# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total {drafts}
# TYPE vllm:spec_decode_num_draft_tokens counter
vllm:spec_decode_num_draft_tokens_total {drafted}
# TYPE vllm:spec_decode_num_accepted_tokens counter
vllm:spec_decode_num_accepted_tokens_total {accepted}
"""


class FakeVllm:
    """Answers as vLLM would; ``broken`` names what it does otherwise.

    p, emission (V, V): the laws that it reports, and those that it samples from. Prompts of text
    are read as one token a letter. ``broken``: "token_ids", "prompt_logprobs", "logprobs",
    "ignore_eos", "n", "completions", "metrics", "drafts" (none), "dies" (at the first long text),
    "processed", "logits" (what it gives as log probabilities), "tokenize", "engine" (error 500 at
    the first long text), "vocabulary" (allowed_token_ids are not checked). ``at_answer`` is called
    with the number of long texts before each, and may raise ConnectionAbortedError.
    """

    def __init__(self, p: Laws, emission: Laws, broken: str = "", most_logprobs: int = 20) -> None:
        self.p, self.emission, self.broken = p, emission, broken
        self.vocabulary = len(p)
        self.answers = self.requests = 0
        self.at_answer: Callable[[int], None] = lambda number: None
        self.lock = threading.Lock()
        self.most_logprobs = most_logprobs
        self.rng = np.random.default_rng(0)
        self.tokens = 0
        self.bodies: list[dict[str, Any]] = []

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": "fake", "max_model_len": 200}]}

    def metrics(self) -> str:
        drafts = 0 if self.broken == "drafts" else self.tokens // 2
        return METRICS.format(
            tokens=self.tokens,
            steps=(self.tokens - self.requests) / 2,  # block efficiency 2
            requests=self.requests,
            drafts=drafts,
            drafted=2 * drafts,
            accepted=drafts // 2,
        )

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            return self.completed(body)

    def tokenize(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """One token a letter; a chat begins and ends with token 0."""
        if self.broken == "tokenize":
            return 404, {"error": "no such path"}
        if "messages" in body:
            return 200, {"tokens": [0, *self.read(body["messages"][0]["content"]), 0]}
        return 200, {"tokens": self.read(body["prompt"])}

    def read(self, text: str) -> list[int]:
        return [ord(letter) % self.vocabulary for letter in text]

    def completed(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        wanted = body.get("prompt_logprobs")
        allowed = body.get("allowed_token_ids")
        if allowed and max(allowed) >= self.vocabulary and self.broken != "vocabulary":
            return 400, {"error": {"message": "allowed_token_ids contains out-of-vocab token id!"}}
        if body["max_tokens"] > 1:
            self.at_answer(self.answers)
            self.answers += 1
        if self.broken == "engine" and body["max_tokens"] > 1:
            return 500, {"error": {"message": "EngineCore encountered an issue."}}
        if self.broken == "dies" and body["max_tokens"] > 1:
            raise ConnectionAbortedError
        if self.broken == "prompt_logprobs" and wanted:
            return 400, {"error": {"message": "prompt_logprobs are not for sale"}}
        if wanted and wanted > self.most_logprobs:
            words = f"Requested prompt logprobs of {wanted}, which is greater than max allowed"
            return 400, {"error": {"message": words}}
        if body.get("logprobs", 0) > max(self.most_logprobs, 1) and "allowed_token_ids" not in body:
            words = f"Requested sample logprobs of {body['logprobs']}, which is greater"
            return 400, {"error": {"message": words}}
        choices: list[dict[str, Any]] = []
        prompts = body["prompt"]
        for prompt in [prompts] if isinstance(prompts[0], int) else prompts:
            ids = self.read(prompt) if isinstance(prompt, str) else prompt
            self.requests += 1
            drawn = texts(self.law(body), ids, body.get("n", 1), body["max_tokens"], self.rng)
            for text in drawn.tolist():
                self.tokens += len(text)
                choices.append({"index": len(choices)} | self.choice(body, ids, text, wanted))
        if self.broken == "n":
            choices = choices[:1]
        return 200, {} if self.broken == "completions" else {"choices": choices}

    def law(self, body: dict[str, Any]) -> Laws:
        if body["temperature"] == 0:
            return np.eye(self.vocabulary)[self.p.argmax(axis=1)]
        return self.emission

    def choice(
        self, body: dict[str, Any], ids: list[int], text: list[int], wanted: int | None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"text": "", "prompt_token_ids": ids, "token_ids": text}
        if self.broken == "token_ids":
            del found["token_ids"], found["prompt_token_ids"]
        if self.broken == "ignore_eos" and len(text) > 1:
            found["token_ids"] = text[:-1]
        if wanted:
            rows = [self.row(a, b, wanted) for a, b in itertools.pairwise(ids)]
            found["prompt_logprobs"] = [None, *rows]
        if body.get("logprobs") and self.broken != "logprobs":
            rows = [
                self.row(a, b, body["logprobs"]) for a, b in itertools.pairwise([ids[-1], *text])
            ]
            for row in rows:
                for entry in row.values():
                    if self.broken == "processed" and body["temperature"] > 0:
                        entry["logprob"] /= body["temperature"]
                    if self.broken == "logits":
                        entry["logprob"] += 20
            named = [{f"token_id:{x}": one["logprob"] for x, one in row.items()} for row in rows]
            own = [row[str(x)]["logprob"] for row, x in zip(rows, text, strict=True)]
            found["logprobs"] = {"top_logprobs": named, "token_logprobs": own}
        return found

    def row(self, last: int, own: int, wanted: int) -> dict[str, Any]:
        """vLLM's order: the text's own token, then the most probable ones."""
        law = self.p[last]
        best = [own, *np.argsort(-law, kind="stable")[:wanted].tolist()]
        return {str(x): {"logprob": float(np.log(law[x])), "rank": 1} for x in best}


class QuietServer(ThreadingHTTPServer):
    """A client that goes in the middle of a request is no error worth a traceback."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(fake: FakeVllm) -> Iterator[str]:
    """The URL at which ``fake`` answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or head and body of an answer are 40 ms apart

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send(200, json.dumps(fake.models()))
            elif self.path == "/version":
                self.send(200, json.dumps({"version": "0.0.fake"}))
            elif self.path == "/metrics" and fake.broken != "metrics":
                self.send(200, fake.metrics())
            else:
                self.send(404, "{}")

        def do_POST(self) -> None:
            try:
                body = json.loads(self.whole_body())
                reply = fake.tokenize if self.path == "/tokenize" else fake.complete
                status, answer = reply(body)
                self.send(status, json.dumps(answer))
            except ConnectionError:  # raised for a test, or the client has gone
                self.close_connection = True

        def whole_body(self) -> bytes:
            length = int(self.headers["Content-Length"])
            data = self.rfile.read(length)
            if len(data) < length:
                raise ConnectionAbortedError("the client has gone before its request was whole")
            return data

        def send(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
