"""Reference MD: many short independent trajectories of a solute in water, from chosen basins.

    python -m training.reference_md alanine-dipeptide -o FOLDER --segments 40 --length 400

Making them needs OpenMM (`training.reference_md.simulation`); reading them needs only numpy:

    segments = read_segments("FOLDER")

README.md has the protocol and the file format.
"""

from __future__ import annotations

from training.reference_md.segments import Segment, read_segments

__all__ = ["Segment", "read_segments"]
