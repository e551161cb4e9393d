"""Measuring structures: crystal labels, defects, pictures.  Nothing heavy is imported here."""
