"""Where the service runs: dashboards, and the adapters of cluster engines."""
