"""Online: diffusion models as probability distributions, behind an HTTP API."""
