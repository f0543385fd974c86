"""A stand-in for the Hugging Face Hub's HTTP service: what a push asks of it, with the files of commits in a folder."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_may_write"


@dataclass
class Hub:
    """What was asked and what is kept: ``folder/user/name`` holds the files of a repository."""

    folder: Path
    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def files(self, repo: str) -> list[str]:
        root = self.folder / repo
        return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
                continue
            place = self.folder / repo / value["path"]
            if line["key"] == "deletedFile":
                place.unlink()
                continue
            assert line["key"] == "file" and value["encoding"] == "base64"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(base64.b64decode(value["content"]))


@contextmanager
def stand_in(folder: Path) -> Iterator[Hub]:
    """The service, on a port of this machine."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, said: Any, **headers: str) -> None:
            body = json.dumps(said).encode()
            self.send_response(code)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:  # noqa: N802
            parts = self.path.partition("?")[0].strip("/").split("/")
            repo = "/".join(parts[2:4])
            if parts[:2] != ["api", "models"] or repo not in hub.private:
                self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
            elif parts[4:5] == ["tree"]:
                found = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in hub.files(repo)]
                self.answer(200, found)
            else:
                self.answer(200, {"id": repo, "sha": "0" * 40, "siblings": [], "private": hub.private[repo]})

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            elif parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                hub.private.setdefault(repo, asked.get("private", asked.get("visibility") == "private"))  # old, new
                (hub.folder / repo).mkdir(parents=True, exist_ok=True)
                (hub.folder / repo / ".gitattributes").touch()
                self.answer(200, {"url": f"{hub.url}/{repo}", "name": repo, "id": "1"})
            elif parts == ["api", "validate-yaml"]:
                self.answer(200, {"errors": [], "warnings": []})
            elif parts[4] == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer(200, {"files": modes})
            else:
                repo = "/".join(parts[2:4])
                hub.commit(repo, [json.loads(line) for line in body.splitlines()])
                said = {"commitUrl": f"{hub.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
                self.answer(200, said)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
