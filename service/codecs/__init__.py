"""Reads and writes values: JSON, safetensors, PNGs, contact sheets."""
