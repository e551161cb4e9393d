"""Is the verdict per atom right, and is its confidence honest?  Crystals, melts and what is between them."""
