"""The command `noneq`: the client for people, and a door to the server's and training's own."""
