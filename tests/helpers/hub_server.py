"""A server that answers as the Hugging Face Hub does, on loopback."""

import hashlib
import http.server
import json

from web_server import Answer, WebServer

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


def add_repository(server: WebServer, name: str, files: dict[str, bytes], revisions: tuple[str, ...] = ("main", COMMIT)) -> None:
    """Serve the files of a repository at some revisions; other files and revisions are not there, as the Hub says it."""
    for revision in revisions:
        for file, body in files.items():
            server.answers[f"/{name}/resolve/{revision}/{file}"] = _file(body)
        for missing in {"model.safetensors", "config.json"} - files.keys():
            server.answers[f"/{name}/resolve/{revision}/{missing}"] = refusal(404, "EntryNotFound")
        tree = [{"type": "file", "path": file, "size": len(body), "oid": COMMIT} for file, body in files.items()]
        for query in ("?recursive=true&expand=false", "?recursive=True&expand=False", "?recursive=true", "?recursive=True"):
            server.answers[f"/api/models/{name}/tree/{revision}{query}"] = _body(json.dumps(tree).encode())


def refusal(status: int, code: str) -> Answer:
    """An error as the Hub sends it."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        if code == "EntryNotFound":  # of a revision that is there
            request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def _file(body: bytes) -> Answer:
    return _body(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})


def _body(body: bytes, headers: dict[str, str] | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {**(headers or {}), "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return answer
