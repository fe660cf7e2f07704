"""Requests as work for the engine, and its results as answers; a file for each kind of question."""
