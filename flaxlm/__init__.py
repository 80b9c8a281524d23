"""flaxlm: transformer language models of every classic family, in JAX and Flax Linen."""
