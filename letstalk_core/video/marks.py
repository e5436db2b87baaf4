"""Machine-readable marks of synthetic video, which every file has: IPTC's digital source type, in XMP and in a comment.

In .mp4, .m4v and .mov the XMP is a box of its own after all others, so that nothing moves, and the comment is the
container's. In .mkv and .webm, which have no place for XMP, both are tags; each picture of a folder has its XMP. The
comment names the type too: programs that copy a video's packets into a new file drop the box, and most of them keep
comments.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

VERSION = "0.1.0"  # as in pyproject.toml
TOOL = f"LetsTalk {VERSION}"
# https://cv.iptc.org/newscodes/digitalsourcetype/: all is generated, or it is pasted into a real picture.
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
SYNTHETIC = (GENERATED, COMPOSITE, "algorithmicMedia", "compositeSynthetic")  # foreign files have the last two
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
TAG = "DIGITAL_SOURCE_TYPE"  # Matroska's tags are capitals
XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
C2PA_BOX = uuid.UUID("d8fec3d6-1b0e-483c-9297-5828877ec481")
MOST_XMP = 1 << 22  # bytes; longer ones are passed over

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{iptc}" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   Iptc4xmpExt:DigitalSourceType="{source}" xmp:CreatorTool="{tool}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def tags(source_type: str, matroska: bool = False) -> dict[str, str]:
    """The metadata of a container whose video is of this digital source type."""
    source = VOCABULARY + source_type
    comment = {"comment": f"Synthetic video made with {TOOL}. Digital source type: {source}"}
    return {**comment, TAG: source} if matroska else comment


def xmp_packet(source_type: str) -> str:
    """The XMP of this digital source type."""
    return _PACKET.format(iptc=IPTC, source=VOCABULARY + source_type, tool=TOOL)


def append_xmp(path: Path, source_type: str) -> None:
    """Append the XMP of this digital source type to a finished .mp4, .m4v or .mov file."""
    packet = xmp_packet(source_type).encode()
    with open(path, "ab") as file:
        file.write(struct.pack(">I4s", 24 + len(packet), b"uuid") + XMP_BOX.bytes + packet)


def boxes(file: BinaryIO) -> Iterator[tuple[bytes | uuid.UUID, int]]:
    """(type, bytes of its content) of each box of an ISO media file, at whose content the file stands then.

    A box that is cut off ends it as (b"", 0): so does a file of another format.
    """
    end, at = os.fstat(file.fileno()).st_size, 0
    while at < end:
        file.seek(at)
        head = file.read(8)
        size, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        start = at + 8
        if size == 1:  # 64 bits
            size, start = int.from_bytes(file.read(8), "big"), at + 16
        elif size == 0 and kind:  # up to the end
            size = end - at
        if kind == b"uuid":
            kind, start = uuid.UUID(bytes=file.read(16).ljust(16, b"\0")), start + 16
        if not kind or not start <= at + size <= end:
            yield b"", 0
            return
        yield kind, at + size - start
        at += size


def source_type_in(xmp: bytes) -> str | None:
    """The digital source type that an XMP packet names, as IPTC's address of it."""
    try:
        root = ElementTree.fromstring(xmp.strip(b"\0 \n\r\t"))
    except ElementTree.ParseError:
        return None
    name = f"{{{IPTC}}}DigitalSourceType"
    for element in root.iter():
        if element.get(name):
            return element.get(name)
        if element.tag == name:  # written as an element: its text, or a resource
            return next((text for text in (*element.attrib.values(), (element.text or "").strip()) if text), None)
    return None
