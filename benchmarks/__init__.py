"""Speed, memory and correctness of jax_crop beside the same operations elsewhere: ``python -m benchmarks``."""
