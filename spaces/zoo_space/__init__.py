"""The Space: upload a structure and see it denoised, roll a molecule out and see its free energy."""
