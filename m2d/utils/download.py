"""Downloads: resumed, limited in size and time, and verified before a file gets its name."""

import concurrent.futures
import fcntl
import hashlib
import http.client
import json
import logging
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from .atomic_file import write_text
from .errors import UserError
from .own_files.own_file import open_own

STALL_SECONDS = 60
_LEAST_BYTES = 10_000  # within STALL_SECONDS
_ATTEMPTS = 3
_BLOCK = 1 << 20
_PARTS = ".download"  # the folder of what is not whole yet
_BROKEN = (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)

logger = logging.getLogger("m2d")


class DownloadError(UserError):
    """A file that could not be fetched, or is not what it should be: the address, what is wrong, and what to do."""


class _BrokenOff(ConnectionError):
    """The connection ended before the file did."""


def download(
    address: str, path: Path, check: Callable[[Path], None], max_bytes: float, stall_seconds: float = STALL_SECONDS
) -> None:
    """Fetch a file, unless `path` exists; `path`.sha256 beside it holds its checksum.

    What was received of it is kept in a folder `.download` beside `path`, and a later call resumes from there. One process
    downloads at a time; others wait for it.

    Args:
        address: https or http. From https no redirect leads to anything else, from http to nothing but https and http.
        path: where it goes.
        check: raises ValueError if the file it is given is not what it should be. Such a file is removed.
        max_bytes: a larger file is refused.
        stall_seconds: the longest wait without at least 10 kB of progress.

    Raises:
        DownloadError: it cannot be fetched, is refused, or is not what it should be.
        OSError: the disk is full, or the folder is not writable.
    """
    part = path.parent / _PARTS / path.name
    with _held(part, path) as file:
        if path.exists():
            return
        _receive_all(address, file, _Resume(part, address), max_bytes, stall_seconds)
        os.fsync(file.fileno())
        try:
            check(part)
        except ValueError as error:
            part.unlink()
            reason = str(error).replace(f"{part.parent}{os.sep}", "")
            raise DownloadError(f"{address}: {reason} (nothing of it is kept)") from error
        write_text(path.with_name(f"{path.name}.sha256"), f"{_sha256(file)}  {path.name}\n")
        part.replace(path)


@contextmanager
def _held(part: Path, path: Path) -> Iterator[IO[bytes]]:
    """The partial file, locked."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.parent.is_symlink():
        raise DownloadError(f"{part.parent} is a link: remove it")
    while True:
        file = open_own(part)
        _wait_for_lock(file, path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                break
        file.close()  # the process that held it has finished, and moved it to its place
    with file:
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0 or path.exists():
                part.unlink(missing_ok=True)
            if not part.exists():
                _Resume.path(part).unlink(missing_ok=True)


def _wait_for_lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        logger.info("%s: another process downloads it; waiting", path)
        fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as error:
        logger.warning("%s: its file system has no locks (%s): take care that one process downloads", path, error.strerror)


class _Resume:
    """What a partial file is a part of: remembered beside it, so that no other file is put together with it."""

    def __init__(self, part: Path, address: str):
        self._path, self._address = self.path(part), address

    @staticmethod
    def path(part: Path) -> Path:
        """Where it is remembered."""
        return part.with_name(f"{part.name}.json")

    def validator(self) -> str | None:
        """The tag or time of the file that the part belongs to; None where it cannot be resumed."""
        try:
            saved = json.loads(self._path.read_text())
            return saved["validator"] if saved["address"] == self._address and isinstance(saved["validator"], str) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def remember(self, reply: HTTPResponse) -> None:
        """Keep what identifies the file that is being received."""
        tag = reply.headers.get("ETag")
        validator = tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified")
        write_text(self._path, json.dumps({"address": self._address, "validator": validator}))


def _receive_all(address: str, file: IO[bytes], resume: _Resume, max_bytes: float, stall_seconds: float) -> None:
    for attempt in range(_ATTEMPTS):
        before = os.fstat(file.fileno()).st_size
        try:
            return _receive(address, file, resume, max_bytes, stall_seconds)
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                file.truncate(0)
                continue
            raise DownloadError(f"{address} could not be fetched ({error.reason}); give a local file in its place") from error
        except (urllib.error.URLError, *_BROKEN) as error:
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            file.flush()
            size = os.fstat(file.fileno()).st_size
            if size == before or attempt == _ATTEMPTS - 1:
                hint = "the same command resumes" if size else "give a local file in its place"
                raise DownloadError(f"{address} could not be fetched ({reason}); {hint}") from error
            logger.warning("%s: %s; resuming", address, reason)
    raise DownloadError(f"{address} could not be fetched: its server sends no such part of it")


def _receive(address: str, file: IO[bytes], resume: _Resume, max_bytes: float, stall_seconds: float) -> None:
    """Receive a file, or the rest of it."""
    begin, validator = file.seek(0, os.SEEK_END), resume.validator()
    headers = {"User-Agent": "m2d", "Accept-Encoding": "identity"}
    if begin and validator:
        headers |= {"Range": f"bytes={begin}-", "If-Range": validator}
    with _open(urllib.request.Request(address, headers=headers), stall_seconds) as reply:
        if not reply.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            begin = file.seek(0)
            file.truncate()
        size = begin + reply.length if reply.length is not None else None
        if size is not None and size > max_bytes:
            raise DownloadError(f"{address} has {size / 1e6:,.1f} MB, more than the {max_bytes / 1e6:,.1f} MB expected: refused")
        resume.remember(reply)
        logger.info("downloading %s (%s)", address, f"{size / 1e6:.1f} MB" if size is not None else "size unknown")
        received = _copy(address, reply, file, begin, size, max_bytes, stall_seconds)
    if size is not None and received != size:
        raise _BrokenOff(f"the connection broke off after {received} of {size} bytes")


def _copy(
    address: str, reply: HTTPResponse, file: IO[bytes], begin: int, size: int | None, max_bytes: float, stall_seconds: float
) -> int:
    """Write what comes to the file. Returns how many bytes of it there are."""
    received = checked_bytes = begin
    checked = time.monotonic()
    with tqdm(total=size, initial=begin, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        while block := reply.read1(_BLOCK):
            received += len(block)
            if received > max_bytes:
                file.truncate(0)
                raise DownloadError(f"{address} has more than the {max_bytes / 1e6:,.1f} MB expected: refused")
            file.write(block)
            bar.update(len(block))
            if time.monotonic() - checked > stall_seconds:
                if received - checked_bytes < _LEAST_BYTES:
                    raise TimeoutError(f"only {received - checked_bytes} bytes came within {stall_seconds:.0f} s")
                checked, checked_bytes = time.monotonic(), received
                if bar.disable:
                    logger.info("%.1f MB received", received / 1e6)
    file.flush()
    return received


def _open(request: urllib.request.Request, stall_seconds: float) -> HTTPResponse:
    """Open an address within a time limit, even if its server sends headers byte by byte."""
    opened: concurrent.futures.Future[HTTPResponse] = concurrent.futures.Future()

    def work() -> None:
        try:
            opened.set_result(_opener(request.full_url).open(request, timeout=stall_seconds))
        except Exception as error:
            opened.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return opened.result(stall_seconds)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer within {stall_seconds:.0f} s") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the schemes allowed."""

    def __init__(self, schemes: tuple[str, ...]):
        self._schemes = schemes

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in self._schemes:
            raise DownloadError(f"{req.full_url} leads to {newurl}: only {' and '.join(self._schemes)} is followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Opens https and http alone, through the proxies of the environment."""
    scheme = urlsplit(address).scheme
    if scheme not in ("https", "http"):
        raise DownloadError(f"{address}: only https and http addresses are fetched")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(("https",) if scheme == "https" else ("https", "http")),
    ):
        opener.add_handler(handler)
    return opener


def _sha256(file: IO[bytes]) -> str:
    state = hashlib.sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        state.update(block)
    return state.hexdigest()
