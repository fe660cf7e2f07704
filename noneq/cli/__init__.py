"""The `noneq` command: calls a service, and starts the server's and training's programs."""
