"""Which rows run next, and how long that takes; no tensors."""
