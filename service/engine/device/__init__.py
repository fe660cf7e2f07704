"""What runs on the device: models, batches, network calls, state."""
