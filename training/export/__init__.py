"""From a checkpoint to an artefact with its card."""
