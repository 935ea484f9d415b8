"""The table against the real packages of every Prefect version that we know."""

from __future__ import annotations

import pytest

from service.core.prefect.routes import Routes, known_routes
from service.core.prefect.versions import Changes, changes
from tests.support.parts import VERSIONS
from tests.support.prefect import openapi_of

BEFORE_3_8 = {
    "GET /api/admin/storage",
    "PUT /api/admin/storage",
    "DELETE /api/admin/storage",
    "POST /api/deployments/bulk_delete",
    "POST /api/deployments/{id}/create_flow_run/bulk",
    "POST /api/flow_runs/bulk_delete",
    "POST /api/flow_runs/bulk_set_state",
    "POST /api/flows/bulk_delete",
    "POST /api/work_pools/{work_pool}/concurrency_status",
    "POST /api/work_queues/{id}/concurrency_status",
}
WITHOUT_LEASES = {
    "POST /api/v2/concurrency_limits/decrement-with-lease",
    "POST /api/v2/concurrency_limits/increment-with-lease",
    "POST /api/v2/concurrency_limits/leases/{lease_id}/renew",
}
DATABASE = {f"POST /api/admin/database/{what}" for what in ("clear", "create", "drop")}
OBSERVED = {"GET /api/observed-states"}
GONE = {
    "3.9.1": DATABASE,
    "3.8.8": DATABASE | OBSERVED,
    "3.6.11": BEFORE_3_8 | OBSERVED,
    "3.4.8": BEFORE_3_8 | OBSERVED | WITHOUT_LEASES,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_knows_each_route_of_each_version(version: str) -> None:
    found = changes(openapi_of(version), Routes(known_routes()))
    assert found == Changes(unknown=(), gone=tuple(sorted(GONE[version])), secret_flags=())
