"""Molecules: their graph and mapping, start structures matched to them, and checks of what they do."""

from __future__ import annotations
