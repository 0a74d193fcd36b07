"""A web server on this machine that breaks connections, as bad networks do."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread


class BrokenServer:
    """Serves the files of a folder; each connection brings at most `limit` bytes of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.limit: int | None = None
        self.pause_at: int | None = None  # byte before which it waits for `go_on`
        self.go_on = Event()
        self.ranges = True  # whether it can send the rest of a file
        self.status = 200
        self.requests: list[tuple[str, int]] = []  # name and first byte of each
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.strip("/"), request.headers.get("Range", "")
        content, start = (self.folder / name).read_bytes(), int(wanted[6:-1] or 0) if self.ranges and wanted else 0
        self.requests.append((name, start))
        if self.status != 200 or (start and start >= len(content)):
            request.send_error(self.status if self.status != 200 else 416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        rest = content[start : None if self.limit is None else start + self.limit]
        if self.pause_at is not None:
            request.wfile.write(rest[: self.pause_at])
            self.go_on.wait(60)
            rest = rest[self.pause_at :]
        with suppress(ConnectionError):  # of a client that was killed
            request.wfile.write(rest)


@contextmanager
def broken_server(folder: Path) -> Iterator[BrokenServer]:
    """A server that runs inside of the block."""
    broken = BrokenServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            broken.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        broken.url = f"http://127.0.0.1:{server.server_port}"
        yield broken
        server.shutdown()
