"""A stand-in for the Hugging Face Hub on loopback: the few routes by which its library downloads and commits."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token"


class Hub:
    """Repositories, ``OWNER/REPO``, of files by path; `TOKEN` may change them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        """What was asked when a repository was to be made."""

    def commit(self, repository: str) -> str:
        """The id of the last commit."""
        return hashlib.sha1(repr(sorted(self.repositories[repository].items())).encode()).hexdigest()

    def read(self, parts: list[str]) -> "tuple[bytes | Any, dict[str, str]] | None":
        """Answer a request of a path in parts: bytes of a file, or JSON, and headers; None where there is nothing."""
        of_api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if of_api else parts[:2])
        files = self.repositories.get(repository)
        if files is None:
            return None
        if not of_api:  # OWNER/REPO/resolve/COMMIT/path
            content = files["/".join(parts[4:])]
            return content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": self.commit(repository)}
        if parts[4:5] == ["tree"]:
            return [
                {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                for path, content in files.items()
            ], {}
        return {"id": repository, "sha": self.commit(repository), "siblings": []}, {}

    def write(self, parts: list[str], body: bytes) -> Any:
        """Do what is asked for by POST, and return the answer."""
        match parts[1:]:
            case ["repos", "create"]:
                asked = json.loads(body)
                self.created.append(asked)
                self.repositories.setdefault(f"{asked['organization']}/{asked['name']}", {})
                return {"url": f"{self.address}/{asked['organization']}/{asked['name']}"}
            case ["models", _, _, "preupload", _]:
                files = json.loads(body)["files"]
                return {
                    "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                }
            case ["models", owner, name, "commit", _]:
                files = self.repositories[f"{owner}/{name}"]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del files[line["value"]["path"]]
                commit = self.commit(f"{owner}/{name}")
                return {"commitUrl": f"{self.address}/{owner}/{name}/commit/{commit}", "commitOid": commit}
        return {"errors": [], "warnings": []}  # of the card's metadata


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _parts(self) -> list[str]:
            return unquote(urlsplit(self.path).path).strip("/").split("/")

        def _answer(self, status: int, content: Any, headers: dict[str, str]) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            found = hub.read(self._parts())
            if found is None:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            else:
                self._answer(200, *found)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                self._answer(200, hub.write(self._parts(), body), {})
            else:
                self._answer(401, {"error": "Unauthorized"}, {})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
