"""Values in and out: JSON, safetensors, PNGs, contact sheets."""
