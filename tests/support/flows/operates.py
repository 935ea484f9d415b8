"""What somebody does who runs what others have deployed: `python operates.py COMMAND ID`, the new run's id printed."""

import sys

from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Paused, Scheduled

command, name = sys.argv[1:]
with get_client(sync_client=True) as client:
    if command == "start":
        print(client.create_flow_run_from_deployment(name, name=f"started-{command}").id)  # noqa: T201
    elif command == "cancel":
        assert client.set_flow_run_state(name, Cancelling()).status.value == "ACCEPT"
    elif command == "retry":
        assert client.set_flow_run_state(name, Scheduled(name="AwaitingRetry"), force=True).status.value == "ACCEPT"
    elif command == "pause":
        assert client.set_flow_run_state(name, Paused(timeout_seconds=60), force=True).status.value == "ACCEPT"
    elif command == "resume":
        assert client.resume_flow_run(name).status.value == "ACCEPT"
