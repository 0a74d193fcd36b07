"""A server on this machine that speaks the part of Weights & Biases' protocol that its library needs to log a run."""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

API_KEY = "0123456789" * 4  # the right length
Run = dict[str, Any]
FILES = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "wandb-summary.json": "summary"}


class WandbServer(ThreadingHTTPServer):
    """Keeps the history, system metrics and summary of each run, by its id.

    `mode`: whether it answers, answers 500, or never answers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode: Literal["ok", "500", "silent"] = "ok"
        self.runs: dict[str, Run] = defaultdict(lambda: {"history": [], "events": [], "summary": [], "config": {}})
        self.requests = 0
        self.answer = threading.Event()  # ends the silence when the server stops

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """What was logged, oldest first."""
        return [json.loads(line) for line in self.runs[run_id]["history"]]

    def summary(self, run_id: str) -> dict[str, Any]:
        """The newest summary of a run."""
        return dict(json.loads(self.runs[run_id]["summary"][-1]))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed in tests."""

    def graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer to a query."""
        run_id = variables.get("name", "")
        user = {"id": "user", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if name in ("Viewer", "GetDefaultEntity"):
            return {"viewer": user | {"defaultEntity": {"name": "me"}}}
        if name == "UpsertBucket":
            inserted = run_id not in self.runs
            run = self.runs[run_id]
            if variables.get("config"):
                run["config"] = json.loads(variables["config"])
            run |= {key: variables[key] for key in ("displayName", "project") if variables.get(key)}
            return {"upsertBucket": {"inserted": inserted, "bucket": _bucket(run_id, run) | {"project": project}}}
        if name == "RunResumeStatus":
            bucket = _bucket(run_id, self.runs[run_id]) if run_id in self.runs else None
            return {"model": {"id": "p", "name": run_id, "entity": project["entity"], "bucket": bucket}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name in ("Run", "RunHistoryKeys"):
            return {"project": {"run": _bucket(run_id, self.runs[run_id]) | {"projectId": "1", "state": "running"}}}
        return {"serverInfo": {"features": []}}


def _bucket(run_id: str, run: Run) -> dict[str, Any]:
    lines = run["history"]
    return {
        "id": f"b-{run_id}", "name": run_id, "displayName": run.get("displayName"), "config": json.dumps(run["config"]),
        "historyLineCount": len(lines), "historyTail": json.dumps(lines[-1:]), "eventsLineCount": len(run["events"]),
        "eventsTail": "[]",
        "historyKeys": {"lastStep": json.loads(lines[-1])["_step"] if lines else -1}, "logLineCount": 0, "tags": [],
        "summaryMetrics": "{}", "systemMetrics": "{}", "wandbConfig": '{"t": 1}', "user": {"name": "", "username": ""},
    }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_PUT(self) -> None:
        self._read()
        self._answer(200, {})

    def do_POST(self) -> None:
        content = self._read()
        self.server.requests += 1
        if self.server.mode == "silent":
            self.server.answer.wait()
        if self.server.mode != "ok":
            self._answer(500, {"error": "out of order"})
        elif self.path.endswith("/file_stream"):
            run = self.server.runs[self.path.split("/")[-2]]
            for file, lines in content.get("files", {}).items():
                if file in FILES:
                    run[FILES[file]][lines["offset"] :] = lines["content"]
            self._answer(200, {})
        else:
            found = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
            name = found.group(1) if found else ""
            self._answer(200, {"data": self.server.graphql(name, content.get("variables") or {})})

    def _read(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return dict(json.loads(body)) if self.command == "POST" else {}

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that runs until the block ends."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.answer.set()
            server.shutdown()
