"""Training of propagators: from segments of reference MD to a checkpoint folder.

1. `packed`: what training needs of the MD, and nothing else, in one safetensors file.
2. `fit`: the loop; imports torch, numpy, safetensors and accelerate only, so that it runs where nothing
   else is installed, on one device or many.
3. `recipe`: both, and the finished checkpoint; each checkpoint's own module says what it is of.
"""
