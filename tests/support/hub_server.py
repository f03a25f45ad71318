"""A stand-in of the model hub on the loopback: the parts of its HTTP interface that push and pull use.

Commits are whole or not at all, as the hub's are, and every byte that arrives is kept to be searched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard, ModelCardData

from forty2.cli import main

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"
"""The only token that may write."""
USER = "anna-of-the-tests"
"""The user of the machine on which runs are made: nothing that is sent may name her."""
_LARGE = (".safetensors", ".bin")
"""Endings of files that are uploaded apart from the commit."""


def git_hash(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def front_matter(card: str) -> ModelCardData:
    """What the hub's own library reads from the front matter of a card."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    return data


@dataclass
class Repo:
    """One repository: its files after the last commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Put these files in place of those that are there."""
        self.files = files
        self.commits.append(
            hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        )
        return self.commits[-1]


@dataclass
class Fault:
    """What goes wrong with requests whose line ("PUT /upload/…") begins as the pattern says."""

    line: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1 << 30
    cut_after: int | None = None
    """Bytes of the body that are read or sent before the connection is cut; None: an answer is sent."""
    after_work: bool = False
    """Whether the request is carried out first, and its answer is lost."""


class Hub:
    """The state of the stand-in, and what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.lines: list[str] = []
        self.received = b""
        """Every body that arrived."""
        self.uploaded_bytes = 0
        self.url = ""
        self.waits: list[float] = []
        """Seconds that its client waited before it tried again."""
        self.lock = threading.Lock()

    def create(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """Make a repository with these files."""
        repo = self.repos[name] = Repo(private)
        repo.commit(files)
        return repo

    def fail(self, line: str, **fault: Any) -> None:
        """Let requests fail from now on."""
        self.faults.append(Fault(line, **fault))

    def count(self, line: str) -> int:
        """Number of requests whose line begins so."""
        return sum(re.match(line, one) is not None for one in self.lines)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a stand-in of the hub until the end of the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        hub.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            http.shutdown()


class _Cut(Exception):
    """The connection was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        line = f"{self.command} {unquote(urlsplit(self.path).path)}"
        try:
            with self.hub.lock:
                self.hub.lines.append(line)
                fault = next(
                    (f for f in self.hub.faults if f.times > 0 and re.match(f.line, line)), None
                )
                if fault is not None:
                    fault.times -= 1
            body = self._body(fault.cut_after if fault and self.command == "PUT" else None)
            with self.hub.lock:
                self.hub.received += body
                if fault is not None and not fault.after_work and fault.cut_after is None:
                    self._answer(fault.status, {"error": "as the test wants"}, fault.headers)
                    return
                status, value, headers = self._work(line, body)
            if fault is not None and fault.cut_after is not None:
                self._cut(value, headers, fault.cut_after)
            self._answer(status, value, headers)
        except _Cut:
            self.close_connection = True
            # a reset, not an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self, cut_after: int | None) -> bytes:
        """Read the body of a request."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if cut_after is not None and len(body) >= cut_after:
                    raise _Cut
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        if cut_after is not None:
            self.rfile.read(min(length, cut_after))
            raise _Cut
        return self.rfile.read(length)

    def _cut(self, value: Any, headers: dict[str, str], sent: int) -> None:
        """Send the beginning of an answer, and cut the connection."""
        if sent and isinstance(value, bytes):
            self._head(200, {**headers, "Content-Length": str(len(value))})
            self.wfile.write(value[:sent])
            self.wfile.flush()
        raise _Cut

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, value: Any, headers: dict[str, str]) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self._head(status, {"Content-Length": str(len(data)), **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- the interface ---

    def _work(self, line: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Carry out a request."""
        for pattern, work in _ROUTES:
            found = re.fullmatch(pattern, line)
            if found is not None:
                answer: tuple[int, Any, dict[str, str]] = work(self, *found.groups(), body)
                return answer
        return 404, {"error": f"no such address: {line}"}, {}

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self) -> tuple[int, Any, dict[str, str]]:
        headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return (404 if self._may_write() else 401), {"error": "Repository not found"}, headers

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        return None if repo is None or (repo.private and not self._may_write()) else repo

    def create(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write():
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if name in self.hub.repos:
            return 409, {"error": "exists", "url": f"{self.hub.url}/{name}"}, {}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private)
        return 200, {"url": f"{self.hub.url}/{name}"}, {}

    def info(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        if repo is None:
            return self._missing()
        siblings = [
            {"rfilename": file, "size": len(data), "blobId": git_hash(data)}
            for file, data in repo.files.items()
        ]
        sha = repo.commits[-1] if repo.commits else "0" * 40
        about = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": []}
        return 200, {**about, "siblings": siblings}, {}

    def tree(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        if repo is None:
            return self._missing()
        listed = []
        for file, data in repo.files.items():
            entry = {"type": "file", "path": file, "size": len(data), "oid": git_hash(data)}
            if file.endswith(_LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 100}
            listed.append(entry)
        return 200, listed, {}

    def preupload(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        if repo is None:
            return self._missing()
        if not self._may_write():
            return 403, {"error": "no right to write"}, {}
        files = []
        for asked in json.loads(body)["files"]:
            path, large = asked["path"], asked["path"].endswith(_LARGE)
            there = repo.files.get(path)
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if large else git_hash(there)
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}, {}

    def batch(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for asked in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.uploads:
                upload = {"href": f"{self.hub.url}/upload/{asked['oid']}", "header": {}}
                entry["actions"] = {"upload": upload}
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def upload(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "other bytes than announced"}, {}
        self.hub.uploads[oid] = body
        self.hub.uploaded_bytes += len(body)
        return 200, b"", {}

    def validate(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        text = json.loads(body)["content"]
        card = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
        relations = ("finetune", "adapter", "quantized", "merge", None)
        errors = [{"message": "unknown relation"}] * (
            card.get("base_model_relation") not in relations
        )
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def commit(self, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        if repo is None:
            return self._missing()
        if not self._may_write():
            return 403, {"error": "no right to write"}, {}
        files = dict(repo.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                parent = value.get("parentCommit")
                if parent is not None and repo.commits and parent != repo.commits[-1]:
                    return 412, {"error": "A commit has happened since"}, {}
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return 200, {"success": True, "commitUrl": url, "commitOid": sha}, {}

    def resolve(self, name: str, revision: str, file: str, body: bytes) -> Any:
        repo = self._repo(name)
        if repo is None:
            return self._missing()
        data = repo.files.get(file)
        if data is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        etag = hashlib.sha256(data).hexdigest() if file.endswith(_LARGE) else git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commits[-1]}
        if self.command == "HEAD":
            return 200, data, {**headers, "Content-Length": str(len(data))}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start is None:
            return 200, data, headers
        first = int(start[1])
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return 206, data[first:], headers


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_NAME}(?:/revision/[^/]+)?", _Handler.info),
    (rf"GET /api/models/{_NAME}/tree/.*", _Handler.tree),
    (rf"POST /api/models/{_NAME}/preupload/main", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /upload/(\w+)", _Handler.upload),
    (rf"POST /api/models/{_NAME}/commit/main", _Handler.commit),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def hub_command(*words: str) -> Result:
    """Run `forty2 push` or `pull`; its output holds no token and no traceback."""
    result = CliRunner().invoke(main, words)
    assert TOKEN not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def error_of(result: Result) -> str:
    """The one line of a refused command."""
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0])
    return lines[0]
