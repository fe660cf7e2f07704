"""Export checkpoints as artefacts with their cards."""
