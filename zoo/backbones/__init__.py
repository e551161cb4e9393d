"""Networks: graph in, one vector per atom out.  They know nothing of noise or of denoising."""
