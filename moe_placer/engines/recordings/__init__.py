"""Recordings that inference engines write: one file here for each format, and what all of them become."""

from moe_placer.engines.recordings.import_options import Options
from moe_placer.engines.recordings.importing import import_recording
from moe_placer.engines.recordings.read_recording import read_recording
from moe_placer.engines.recordings.recorded import About, Recorded, write_recording

__all__ = ["About", "Options", "Recorded", "import_recording", "read_recording", "write_recording"]
