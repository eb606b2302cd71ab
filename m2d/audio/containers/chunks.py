"""Chunks, which many formats are made of; and files that end before the chunk of their samples does."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

# Programs that write to a pipe cannot know the length, and put a number near the largest one.
_PLACEHOLDERS = {4: 0x7FFF0000, 8: 1 << 62}


class Form(NamedTuple):
    """How a format writes its chunks.

    Attributes:
        first: where the first chunk begins.
        samples: what the name of the chunk of samples begins with.
        order: of a size's bytes.
        name_bytes, size_bytes: of a chunk's header.
        counts_header: whether a size counts the header too.
        align: chunks begin at multiples of it.
    """

    first: int
    samples: bytes
    order: Literal["little", "big"]
    name_bytes: int = 4
    size_bytes: int = 4
    counts_header: bool = False
    align: int = 2


RIFF = Form(12, b"data", "little")
_FORMS = {
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Form(12, b"data", "big"),
    b"FORM": Form(12, b"SSND", "big"),  # AIFF
    b"caff": Form(8, b"data", "big", size_bytes=8, align=1),
    b"riff": Form(40, b"data", "little", name_bytes=16, size_bytes=8, counts_header=True, align=8),  # W64
}


def chunks(file: BinaryIO, size: int, form: Form) -> Iterator[tuple[bytes, range]]:
    """Names and contents of the chunks; of that of the samples alone also one that goes beyond the end of the file.

    Args:
        file: what they are read from.
        size: of the file, in bytes.
        form: of the chunks.
    """
    position, header = form.first, form.name_bytes + form.size_bytes
    while position + header <= size:
        file.seek(position)
        name = file.read(form.name_bytes)
        length = int.from_bytes(file.read(form.size_bytes), form.order) - header * form.counts_header
        content = range(position + header, position + header + length)
        is_named = name[:4].isascii() and name[:4].decode().isprintable()
        if not is_named or length < 0 or (content.stop > size and not name.startswith(form.samples)):
            return
        yield name, content
        position = content.stop + -content.stop % form.align


def lost(promised: range, size: int, size_bytes: int = 4) -> str:
    """What is wrong with a file of `size` bytes whose samples should be in the range `promised`, in words that follow its name.

    Empty: nothing is, or `size_bytes` bytes hold a size that was not known when it was written.
    """
    length = promised.stop - promised.start  # len takes no more than 63 bits
    if promised.stop <= size or length >= _PLACEHOLDERS[size_bytes]:
        return ""
    return f"is cut short: {size - promised.start} of the {length} bytes that its header promises are there"


def cut_short(file: BinaryIO, size: int) -> str:
    """What is wrong with a file that ends before its header says so, in words that follow its name; empty: nothing is.

    Args:
        file: RF64, AIFF, CAF, W64, AU, NIST SPHERE or VOC; other formats are not checked.
        size: of the file, in bytes.
    """
    file.seek(0)
    head = file.read(1024)
    if head.startswith((b".snd", b"dns.")) and len(head) >= 12:
        begin, length = struct.unpack(">II" if head.startswith(b".snd") else "<II", head[4:12])
        return lost(range(begin, begin + length), size)
    if head.startswith(b"NIST_1A"):
        return lost(_sphere_samples(head), size)
    if head.startswith(b"Creative Voice File"):
        return lost(_last_voc_block(file, size, int.from_bytes(head[20:22], "little")), size)
    form = _FORMS.get(head[:4])
    if form is None:
        return ""
    found = dict(chunks(file, size, form))
    promised = next((content for name, content in found.items() if name.startswith(form.samples)), range(0))
    if b"ds64" in found and promised.stop - promised.start == 0xFFFFFFFF:  # the size that counts is elsewhere
        file.seek(found[b"ds64"].start + 8)
        length = int.from_bytes(file.read(8), "little")
        return lost(range(promised.start, promised.start + length), size, 8)
    return lost(promised, size, form.size_bytes)


def _sphere_samples(head: bytes) -> range:
    fields = {words[0]: words[2] for line in head.splitlines() if len(words := line.split()) == 3}
    try:
        begin = int(head.split()[1])
        length = int(fields[b"sample_count"]) * int(fields[b"sample_n_bytes"]) * int(fields[b"channel_count"])
    except (ValueError, KeyError):
        return range(0)
    return range(begin, begin + length)


def _last_voc_block(file: BinaryIO, size: int, position: int) -> range:
    block = range(0)
    while block.stop <= size:
        file.seek(position)
        header = file.read(4)
        if len(header) < 4 or not header[0]:  # a block of type 0 ends the file
            break
        block = range(position + 4, position + 4 + int.from_bytes(header[1:], "little"))
        position = block.stop
    return block
