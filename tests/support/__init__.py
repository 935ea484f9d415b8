"""Real parts for the tests, started on loopback, awaited within bounds and stopped by their own id."""
