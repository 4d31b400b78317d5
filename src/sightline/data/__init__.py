"""Data: files and scenes as Records, their order in training, and tools that look at them."""

from __future__ import annotations

from sightline.data.records import Records, read_records
from sightline.data.sources import SceneSource, Source, open_source
from sightline.data.stream import DataStream, paired_batch
from sightline.data.write import write_records

__all__ = [
    "DataStream",
    "Records",
    "SceneSource",
    "Source",
    "open_source",
    "paired_batch",
    "read_records",
    "write_records",
]
