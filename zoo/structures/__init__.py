"""Structures and trajectories in and out, frame by frame, and the checks a structure must pass.

>>> from zoo.structures import FrameWriter, read_frames
>>> with FrameWriter("copy.extxyz") as writer:          # doctest: +SKIP
...     for atoms in read_frames("run.dump", species=["Al", "Cu"]):
...         writer.write(atoms)
"""

from __future__ import annotations

from zoo.structures.checks import check_structure
from zoo.structures.reader import read_frames
from zoo.structures.writer import MANY_FRAME_FORMATS, FrameWriter

__all__ = ["MANY_FRAME_FORMATS", "FrameWriter", "check_structure", "read_frames"]
