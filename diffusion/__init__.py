"""The probability model: processes, networks, bounds, posteriors, samplers and artefacts."""
