"""What is wrong with how a worker's machine calls the gate: Prefect's settings there, the credential, both roads."""
