"""A small Hugging Face Hub on this machine: the part of its HTTP interface that fetching uses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import attrs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@attrs.define
class Served:
    """What the hub has, and what it was asked for.

    Attributes:
        files: content by `owner/repository/path`.
        cut: bytes after which a download breaks off, once.
        gone_after_cut: whether the hub has nothing any more after that.
        lies: a hash that the record claims for a path in place of the true one.
        ranges: the `Range` header of every download.
    """

    files: dict[str, bytes]
    cut: int | None = None
    gone_after_cut: bool = False
    lies: dict[str, str] = attrs.field(factory=dict)
    ranges: list[str | None] = attrs.field(factory=list)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving(served: Served) -> Iterator[str]:
    """Run the hub; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            if model := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                known = any(name.startswith(model[1] + "/") for name in served.files)
                self._json(200 if known else 404, {"id": model[1], "sha": COMMIT, "siblings": []})
            else:
                self._file(path, body=True)

        def do_HEAD(self) -> None:
            self._file(unquote(self.path.partition("?")[0]), body=False)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            repo = self.path.split("/paths-info/")[0].removeprefix("/api/models/")
            paths = re.findall(r"paths=([^&]+)", asked) or json.loads(asked)["paths"]
            found = []
            for name in map(unquote, paths):
                if (content := served.files.get(f"{repo}/{name}")) is not None:
                    oid = served.lies.get(name, sha256(content))
                    lfs = {"size": len(content), "oid": oid, "pointerSize": 134}
                    found.append(
                        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}
                    )
            self._json(200, found)

        def _file(self, path: str, body: bool) -> None:
            matched = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            content = served.files.get(f"{matched[1]}/{matched[3]}") if matched else None
            if content is None:
                self._json(404, {})
                return
            start = 0
            if body:
                served.ranges.append(self.headers.get("Range"))
                if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                    start = int(asked[1])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256(content)}"')
            self.send_header("X-Linked-Etag", f'"{sha256(content)}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.end_headers()
            if body:
                cut, served.cut = served.cut, None
                self.wfile.write(content[start:cut])
                if cut is not None:
                    self.close_connection = True
                    if served.gone_after_cut:
                        served.files.clear()

        def _json(self, code: int, content: object) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            if code == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
