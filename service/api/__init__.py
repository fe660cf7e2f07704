"""The HTTP layer: routes, streams, bodies and middleware."""
