"""The worker's side: a proxy on loopback that adds a fresh credential to whatever a Prefect worker sends."""
