"""The HTTP front: routes, streams, bodies and middleware."""
