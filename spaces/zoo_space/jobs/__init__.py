"""What the workers do: no web page here, no state, and nothing kept but the files that are asked for."""
