"""The capabilities in words, each as what one may do: "the right to …"."""

from collections.abc import Mapping
from typing import Final

from service.core.prefect.routes import Capability

MEANING: Final[Mapping[Capability, str]] = {  # the narrowest first
    Capability.ANY: "open the UI, and see health and versions",
    Capability.READ: "see everything except the secrets of blocks",
    Capability.READ_SECRET: "see the secrets of blocks",
    Capability.RUN: "start, cancel, retry, pause and resume runs, and answer runs that wait for input",
    Capability.REPORT: "report what running code does: its flow, runs, states and artifacts",
    Capability.EMIT: "write logs and events, in which task-run states travel",
    Capability.SLOTS: "take and give back slots of concurrency limits",
    Capability.VARIABLES: "create and change variables",
    Capability.WORK: "take runs from work pools and task queues, and send heartbeats, as workers do",
    Capability.JOIN: "create a missing work pool, as a worker does that starts, and change any work pool",
    Capability.DEPLOY: "create and change flows, deployments and schedules, and create automations",
    Capability.POOLS: "create and change work pools and queues",
    Capability.BLOCKS: "create and change blocks, their types and schemas",
    Capability.ADMIN: "do everything, on unknown routes too",
}
