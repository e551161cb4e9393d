"""Two simulations to look at, raw and denoised: a crystal that grows in its melt, dislocations in iron.

    python -m training.demonstrations

`cells` builds the starting structures, `md` simulates, `measure` counts, `figures` draws, `__main__` is the
command line.
"""
