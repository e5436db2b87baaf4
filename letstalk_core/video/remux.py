"""A video's packets in a new file, as they are."""

from __future__ import annotations

from pathlib import Path

import av

from ..files import cannot_write, check_file
from .file_format import format_of
from .reader import open_video


def copy_packets(source: Path, target: Path, metadata: dict[str, str]) -> None:
    """Copy all streams of a video to a new file of the same format, with what they say of themselves, alpha included.

    metadata: of the new file.
    """
    with open_video(check_file(source, "video")) as container:
        chosen = (*container.streams.video[:1], *container.streams.audio[:1])
        try:
            with av.open(f"file:{target}", "w", format=format_of(target).container) as copy:
                copy.metadata.update(metadata)
                streams = {}
                for stream in chosen:
                    streams[stream] = copy.add_stream_from_template(stream)
                    streams[stream].metadata.update(stream.metadata)
                for packet in container.demux(*chosen):
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream]
                        copy.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise cannot_write(target, error) from error
