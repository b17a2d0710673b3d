"""A hub on this machine: as much of the protocol as fetching and pushing models needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors",)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeHub:
    """Repositories in memory: name -> commits, each a table of files; the last one is main."""

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.writers = {"secret-token"}
        self.requests: list[str] = []
        self.address = ""

    def add(self, repo: str, folder) -> None:
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file()
        }
        self.repos.setdefault(repo, []).append(files)

    def commit(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a revision; None if there is none."""
        states = self.repos[repo]
        names = {self.commit(repo, i): i for i in range(len(states))}
        names |= {"main": len(states) - 1} | {f"v{i + 1}": i for i in range(len(states))}
        if revision not in names:
            return None
        return self.commit(repo, names[revision]), states[names[revision]]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, code: str, status: int = 404) -> None:
        self.answer(status, b"{}", X_Error_Code=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?.*", path):
            self.tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*match.groups())
        else:
            self.answer(404)

    def state(self, repo: str, revision: str):
        if repo in self.hub.gated:
            self.refuse("GatedRepo", 403)
        elif repo not in self.hub.repos:
            self.refuse("RepoNotFound")
        elif (found := self.hub.at(repo, revision)) is None:
            self.refuse("RevisionNotFound")
        else:
            return found
        return None

    def info(self, repo: str, revision: str) -> None:
        if (found := self.state(repo, revision)) is not None:
            commit, files = found
            self.json({"id": repo, "sha": commit, "siblings": [
                {"rfilename": n, "size": len(d), **({"lfs": {"sha256": sha256(d), "size": len(d),
                 "pointerSize": 130}} if n.endswith(LARGE) else {})} for n, d in files.items()
            ]})  # fmt: skip

    def tree(self, repo: str, revision: str) -> None:
        if (found := self.state(repo, revision)) is not None:
            self.json([
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in found[1].items()
            ])  # fmt: skip

    def resolve(self, repo: str, revision: str, file: str) -> None:
        found = self.state(repo, revision)
        if found is None:
            return
        commit, files = found
        if file not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        data = files[file]
        tag = sha256(data) if file.endswith(LARGE) else hashlib.sha1(data).hexdigest()
        first = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
        self.answer(206 if first else 200, data[first:], ETag=f'"{tag}"', X_Repo_Commit=commit,
                    Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}")  # fmt: skip

    def do_POST(self) -> None:
        body = self.body()
        path = urlsplit(self.path).path
        self.hub.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            self.answer(401, b'{"error": "Invalid username or password."}')
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.repos:
                self.answer(409, json.dumps({"url": f"{self.hub.address}/{repo}"}).encode())
            else:
                self.hub.repos[repo] = [{}]
                self.json({"url": f"{self.hub.address}/{repo}", "private": asked.get("private")})
        elif "/preupload/" in path:
            self.json({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                for f in json.loads(body)["files"]
            ]})  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            self.json({"transfer": "basic", "objects": [
                {"oid": o["oid"], "size": o["size"],
                 "actions": {"upload": {"href": f"{self.hub.address}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]})  # fmt: skip
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.take_commit(match[1], body)
        else:
            self.answer(404)

    def take_commit(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.repos[repo][-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repos[repo].append(files)
        commit = self.hub.commit(repo, len(self.hub.repos[repo]) - 1)
        self.json({"success": True, "commitOid": commit, "hookOutput": "",
                   "commitUrl": f"{self.hub.address}/{repo}/commit/{commit}"})  # fmt: skip

    def do_PUT(self) -> None:
        data = self.body()
        oid = urlsplit(self.path).path.rpartition("/")[2]
        if sha256(data) != oid or parse_qs(urlsplit(self.path).query):
            self.answer(400)
            return
        self.hub.large[oid] = data
        self.answer(200)


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers at `hub.address`."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
