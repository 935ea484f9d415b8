"""What somebody does who runs what others have deployed: `python operates.py COMMAND ID …`.

The id of each new run is printed; as an ID, `-` is the one before.
"""

import sys

from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Paused, Scheduled

with get_client(sync_client=True) as client:
    last = ""
    for command, given in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        name = last if given == "-" else given
        if command == "start":
            last = str(client.create_flow_run_from_deployment(name, name="started").id)
            print(last)  # noqa: T201
        elif command == "cancel":
            assert client.set_flow_run_state(name, Cancelling()).status.value == "ACCEPT"
        elif command == "retry":
            assert client.set_flow_run_state(name, Scheduled(name="AwaitingRetry"), force=True).status.value == "ACCEPT"
        elif command == "pause":
            assert client.set_flow_run_state(name, Paused(timeout_seconds=60), force=True).status.value == "ACCEPT"
            assert client.read_flow_run(name).state.is_paused()
        elif command == "resume":
            assert client.resume_flow_run(name).status.value == "ACCEPT"
            state = client.read_flow_run(name).state
            assert state.is_scheduled() or state.is_running()
