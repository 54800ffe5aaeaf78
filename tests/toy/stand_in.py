"""A stand-in for the hub: one repository of a folder's files at one commit, on this machine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks of a repository. asked: the paths, in order."""

    def __init__(self, repo: str, folder: Path, asked: list[str], *args):
        self.repo, self.folder, self.asked = repo, folder, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        api, files = f"/api/models/{self.repo}", f"/{self.repo}/resolve/{COMMIT}/"
        if path.startswith(files) and (self.folder / path.removeprefix(files)).is_file():
            content = (self.folder / path.removeprefix(files)).read_bytes()
            self.send(content if body else b"", len(content), sha256(content).hexdigest())
        elif path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            names = [{"rfilename": name} for name in self.names()]
            self.say({"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": names})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self.say([self.row(name) for name in self.names()])
        else:
            self.say({"error": "Repository not found"}, 404)

    def names(self) -> list[str]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in found]

    def row(self, name: str) -> dict:
        content = (self.folder / name).read_bytes()
        return {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": sha256(content).hexdigest(),
        }

    def say(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send(content, len(content), "json", status)

    def send(self, content: bytes, size: int, tag: str, status: int = 200) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(size), "ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        return None


@contextmanager
def served(repo: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has this one repository, and what is asked of it."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repo, folder, asked))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
