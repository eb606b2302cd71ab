"""Scalars in TensorBoard's file format, written at once: no thread of its own that could die on a full disk."""

import os
import platform
import time
from itertools import count
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_number = count()


class EventFile:
    """A new file of events in a folder, which is made as needed.

    Args:
        folder: the folder.
        purge_step: TensorBoard drops what earlier files hold from this step on.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}.{next(_number)}"
        self._file = (Path(folder) / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))
        self._file.flush()

    def add(self, x: int, values: dict[str, float]) -> None:
        """Write scalars at step x.

        Raises:
            OSError: they cannot be written; the file may end in a torn record.
        """
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(summary=summary, step=x))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
