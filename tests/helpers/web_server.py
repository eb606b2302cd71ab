"""A web server on loopback, by http or https, that misbehaves as it is told."""

import http.server
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import trustme

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # blocks are asked for together; a connection beyond the queue would be tried again after a second


class WebServer:
    """Answers by path; `asked` keeps (path, Range header) of each request.

    Args:
        ca: signs the certificate of an https server; None: http.
    """

    def __init__(self, ca: trustme.CA | None = None):
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Range")))
                self.close_connection = True
                answer = server.answers.get(self.path)
                try:
                    answer(self) if answer else self.send_error(404)
                except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                    pass  # the client has gone

            do_HEAD = do_GET

            def end_headers(self) -> None:
                self.send_header("Connection", "close")  # else a client sends its next request on the closed connection
                super().end_headers()

            def log_message(self, *args: object) -> None:
                """Nothing: tests read what was asked."""

        self._httpd = _Server(("127.0.0.1", 0), Handler)
        if ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert("127.0.0.1").configure_cert(context)
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        self.address = f"http{'s' if ca else ''}://127.0.0.1:{self._httpd.server_port}"
        threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._httpd.shutdown()
        self._httpd.server_close()


def trust(ca: trustme.CA, folder: Path, monkeypatch) -> None:
    """Have this process trust the authority's certificates."""
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))


def content(body: bytes, tag: str = '"1"', length: int | None = None) -> Answer:
    """A file, the rest of it where a Range is asked for; `length`: the Content-Length that is claimed (-1: none)."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        begin, span = 0, request.headers.get("Range")
        if span and request.headers.get("If-Range") == tag:
            begin = int(span.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        if length != -1:
            request.send_header("Content-Length", str(len(body) - begin if length is None else length))
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(body[begin:])

    return answer


def ranged(body: bytes) -> Answer:
    """A file of which any range can be asked for, as object storage has them."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        begin, end, span = 0, len(body), request.headers.get("Range")
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, len(body)) if last else len(body)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(end - begin))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[begin:end])

    return answer


def breaking(body: bytes, after: int, tag: str = '"1"') -> Answer:
    """A file whose connection ends after so many bytes of each answer."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        begin, span = 0, request.headers.get("Range")
        if span and request.headers.get("If-Range") == tag:
            begin = int(span.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(body) - begin))
        request.end_headers()
        request.wfile.write(body[begin : begin + after])

    return answer


def endless(sent: list[int], status: int = 200, length: int = 1 << 40) -> Answer:
    """A file that never ends, whatever part is asked for; `sent` gets the bytes of each block that was sent."""
    block = bytes(1 << 20)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        while request.command == "GET":
            request.wfile.write(block)
            sent.append(len(block))

    return answer


def redirect(to: str) -> Answer:
    """A redirect."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", to)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def dripping_headers(seconds: float) -> Answer:
    """A header that never ends, a byte now and then."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(1000):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(seconds)

    return answer


def dripping(seconds: float, length: int = 10**6) -> Answer:
    """A byte now and then, for ever."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(seconds)

    return answer
