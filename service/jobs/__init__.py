"""Requests that are answered later: kept on disk, and run when there is room."""
