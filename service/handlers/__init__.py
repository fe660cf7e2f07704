"""What each route does with a checked request: prepare a job, render its result."""
