"""A stand-in for a vLLM server: its completions API over a small Markov model, right or wrong."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.theory.markov_engine import VOCABULARY, Laws, texts

METRICS = """# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total {tokens}
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_count {tokens}
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
    "ignore_eos", "n", "completions", "metrics", "drafts" (none), "dies" (at the first long text).
    """

    def __init__(self, p: Laws, emission: Laws, broken: str = "", most_logprobs: int = 20) -> None:
        self.p, self.emission, self.broken = p, emission, broken
        self.most_logprobs = most_logprobs
        self.rng = np.random.default_rng(0)
        self.tokens = 0
        self.bodies: list[dict[str, Any]] = []

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": "fake", "max_model_len": 200}]}

    def metrics(self) -> str:
        drafts = 0 if self.broken == "drafts" else self.tokens // 2
        return METRICS.format(
            tokens=self.tokens, drafts=drafts, drafted=2 * drafts, accepted=drafts // 2
        )

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        wanted = body.get("prompt_logprobs")
        if self.broken == "dies" and body["max_tokens"] > 1:
            raise ConnectionAbortedError
        if self.broken == "prompt_logprobs" and wanted:
            return 400, {"error": {"message": "prompt_logprobs are not for sale"}}
        if wanted and wanted > self.most_logprobs:
            words = f"Requested prompt logprobs of {wanted}, which is greater than max allowed"
            return 400, {"error": {"message": words}}
        choices: list[dict[str, Any]] = []
        for prompt in body["prompt"]:
            ids = [ord(c) % VOCABULARY for c in prompt] if isinstance(prompt, str) else prompt
            drawn = texts(self.law(body), ids, body.get("n", 1), body["max_tokens"], self.rng)
            for text in drawn.tolist():
                self.tokens += len(text)
                choices.append({"index": len(choices)} | self.choice(body, ids, text, wanted))
        if self.broken == "n":
            choices = choices[:1]
        return 200, {} if self.broken == "completions" else {"choices": choices}

    def law(self, body: dict[str, Any]) -> Laws:
        if body["temperature"] == 0:
            return np.eye(VOCABULARY)[self.p.argmax(axis=1)]
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
            row = self.row(ids[-1], text[0], body["logprobs"])
            named = {f"token_id:{x}": entry["logprob"] for x, entry in row.items()}
            found["logprobs"] = {"top_logprobs": [named]}
        return found

    def row(self, last: int, own: int, wanted: int) -> dict[str, Any]:
        """vLLM's order: the text's own token, then the most probable ones."""
        law = self.p[last]
        best = [own, *np.argsort(-law, kind="stable")[:wanted].tolist()]
        return {str(x): {"logprob": float(np.log(law[x])), "rank": 1} for x in best}


@contextmanager
def served(fake: FakeVllm) -> Iterator[str]:
    """The URL at which ``fake`` answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send(200, json.dumps(fake.models()))
            elif self.path == "/metrics" and fake.broken != "metrics":
                self.send(200, fake.metrics())
            else:
                self.send(404, "{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = fake.complete(body)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            self.send(status, json.dumps(answer))

        def send(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
