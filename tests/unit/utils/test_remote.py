"""Files on the web, whatever their servers send: no more of it is held than was asked for."""

import pytest
from web_server import WebServer, content, endless

from m2d.audio.sources import addresses
from m2d.audio.sources.addresses import Address
from m2d.data.pack.format import PackInfo
from m2d.data.pack.remote import RemotePack
from m2d.utils import remote
from m2d.utils.errors import FileError
from m2d.utils.remote import BLOCK, BlockReader, look_at, read_whole

ENOUGH = 64 << 20  # bytes that a server may get rid of, buffers included


@pytest.fixture
def server():
    server = WebServer()
    yield server
    server.close()


def test_a_file_that_comes_in_pieces_is_read_whole(server):
    body = bytes(range(256)) * 2000

    def in_pieces(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        for begin in range(0, len(body) if request.command == "GET" else 0, 1000):
            request.wfile.write(body[begin : begin + 1000])

    server.answers["/a.wav"] = in_pieces
    assert Address(f"{server.address}/a.wav").read() == body
    assert read_whole(f"{server.address}/a.wav", len(body)) == body
    assert read_whole(f"{server.address}/a.wav", len(body) - 1) is None


def test_an_endless_sound_is_left_after_the_most_that_is_read(server, monkeypatch):
    sent = []
    server.answers["/a.wav"] = endless(sent)
    monkeypatch.setattr(addresses, "MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="has more than 1 MiB, which are not read from an address"):
        Address(f"{server.address}/a.wav").read()
    assert sum(sent) < ENOUGH


def test_an_endless_pack_json_is_left(server, block_cache):
    sent = []
    server.answers["/x.pack/pack.json"] = endless(sent)
    with pytest.raises(FileError, match=r"x\.pack: its pack\.json has more than 16 MiB: not what m2d pack writes"):
        with RemotePack(f"{server.address}/x.pack").head():
            pass
    assert sum(sent) < ENOUGH


def test_an_endless_index_is_not_copied(server, block_cache):
    info = PackInfo("0" * 64, 20, 10, "float16", 80, 0, ("file_name",))
    sent = []
    server.answers["/x.pack/pack.json"] = content(info.to_json().encode())
    server.answers["/x.pack/chunk-00001.index.npz"] = endless(sent, 206)
    with pytest.raises(FileError, match=r"chunk-00001\.index\.npz: 1099511627776 bytes for 10 clips"):
        with RemotePack(f"{server.address}/x.pack").head():
            pass
    assert not sent


@pytest.mark.parametrize(
    ("status", "reason"), [(200, "sends the whole file where a part is asked for"), (206, "bytes came of")], ids=["whole", "more"]
)
def test_a_server_that_sends_more_than_a_block_is_left(server, monkeypatch, status, reason):
    sent = []
    server.answers["/a.tar"] = endless(sent, status)
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0)
    file = look_at(f"{server.address}/a.tar")
    assert file.size == 1 << 40
    with pytest.raises(FileError, match=reason):
        BlockReader(cache=None).read([(file, 5 * BLOCK, memoryview(bytearray(BLOCK)))])
    assert sum(sent) < 3 * ENOUGH
