"""The service on Ray: replicas behind one address (`app`), and data sets in batches (`batch`)."""
