"""The table: every route of Prefect's server, and which capabilities open it.

Columns: method (``WS`` is a WebSocket, which a proxy shows as GET), path, the capabilities of which any one is enough,
and behind ``#`` why, where that is not plain. Paths are as Prefect's own router has them: ``{id:uuid}`` matches a UUID
alone, ``{name}`` one segment, ``{rest:path}`` all that follows. A role may be limited by what stands for ``work_pool``,
``flow`` and ``deployment``.

``API`` is what Prefect's OpenAPI document lists, and the WebSockets, which it leaves out. ``API`` and ``BESIDE_API``
stand under the API's base path, ``DOCS`` there and at the root, ``PAGES`` under the UI's.

Known are Prefect 3.4 to 3.9; ``routes diff`` compares the table with any version's OpenAPI document.
"""

from typing import Final

API: Final = """
GET     /health                                               any
GET     /ready                                                any
GET     /version                                              any
GET     /hello                                                any
GET     /csrf-token                                           any                  # before each client's first write
GET     /admin/version                                        any                  # WebSocket clients ask for it first

GET     /admin/settings                                       read                 # secrets masked; each page asks
GET     /admin/storage                                        read                 # each flow run asks
PUT     /admin/storage                                        admin
DELETE  /admin/storage                                        admin
POST    /admin/database/clear                                 admin                # before 3.8
POST    /admin/database/create                                admin                # before 3.8
POST    /admin/database/drop                                  admin                # before 3.8

POST    /flows/                                               report deploy        # creates it, or finds it by name
GET     /flows/{id:uuid}                                      read
PATCH   /flows/{id:uuid}                                      deploy
DELETE  /flows/{id:uuid}                                      admin
GET     /flows/name/{flow}                                    read
POST    /flows/count                                          read
POST    /flows/filter                                         read
POST    /flows/paginate                                       read
POST    /flows/bulk_delete                                    admin

POST    /flow_runs/                                           report
GET     /flow_runs/{id:uuid}                                  read
PATCH   /flow_runs/{id:uuid}                                  report work
DELETE  /flow_runs/{id:uuid}                                  admin
POST    /flow_runs/{id:uuid}/set_state                        run report work
POST    /flow_runs/{id:uuid}/resume                           run
PATCH   /flow_runs/{id:uuid}/labels                           report work
GET     /flow_runs/{id:uuid}/graph                            read
GET     /flow_runs/{id:uuid}/graph-v2                         read
GET     /flow_runs/{id:uuid}/logs/download                    read
POST    /flow_runs/{id:uuid}/input                            run report
POST    /flow_runs/{id:uuid}/input/filter                     read
GET     /flow_runs/{id:uuid}/input/{key}                      read
DELETE  /flow_runs/{id:uuid}/input/{key}                      report               # a flow removes input that it read
POST    /flow_runs/count                                      read
POST    /flow_runs/filter                                     read
POST    /flow_runs/history                                    read
POST    /flow_runs/lateness                                   read
POST    /flow_runs/paginate                                   read
POST    /flow_runs/bulk_set_state                             run                  # what set_state does, one by one
POST    /flow_runs/bulk_delete                                admin
GET     /flow_run_states/                                     read
GET     /flow_run_states/{id:uuid}                            read

POST    /task_runs/                                           report
GET     /task_runs/{id:uuid}                                  read
PATCH   /task_runs/{id:uuid}                                  report
DELETE  /task_runs/{id:uuid}                                  admin                # task.serve tries, logs a refusal
POST    /task_runs/{id:uuid}/set_state                        report
POST    /task_runs/count                                      read
POST    /task_runs/filter                                     read
POST    /task_runs/history                                    read
POST    /task_runs/paginate                                   read
WS      /task_runs/subscriptions/scheduled                    work                 # hands out what it sends
GET     /task_run_states/                                     read
GET     /task_run_states/{id:uuid}                            read
POST    /task_workers/filter                                  read
GET     /observed-states                                      read

POST    /logs/                                                emit
POST    /logs/filter                                          read
WS      /logs/out                                             read
POST    /events                                               emit
WS      /events/in                                            emit                 # task-run states travel here
WS      /events/out                                           read
POST    /events/filter                                        read
GET     /events/filter/next                                   read
POST    /events/count-by/{countable}                          read

POST    /artifacts/                                           report
GET     /artifacts/{id:uuid}                                  read
PATCH   /artifacts/{id:uuid}                                  report
DELETE  /artifacts/{id:uuid}                                  admin
GET     /artifacts/{key}/latest                               read
POST    /artifacts/count                                      read
POST    /artifacts/filter                                     read
POST    /artifacts/latest/count                               read
POST    /artifacts/latest/filter                              read

POST    /deployments/                                         deploy
GET     /deployments/{id:uuid}                                read
PATCH   /deployments/{id:uuid}                                deploy
DELETE  /deployments/{id:uuid}                                admin
GET     /deployments/name/{flow}/{deployment}                 read
POST    /deployments/{id:uuid}/create_flow_run                run
POST    /deployments/{id:uuid}/create_flow_run/bulk           run
POST    /deployments/{id:uuid}/schedule                       deploy
POST    /deployments/{id:uuid}/pause_deployment               deploy
POST    /deployments/{id:uuid}/resume_deployment              deploy
GET     /deployments/{id:uuid}/schedules                      read
POST    /deployments/{id:uuid}/schedules                      deploy
PATCH   /deployments/{id:uuid}/schedules/{schedule_id:uuid}   deploy
DELETE  /deployments/{id:uuid}/schedules/{schedule_id:uuid}   deploy
GET     /deployments/{id:uuid}/work_queue_check               read
POST    /deployments/count                                    read
POST    /deployments/filter                                   read
POST    /deployments/paginate                                 read
POST    /deployments/get_scheduled_flow_runs                  work deploy          # flow.serve polls, and marks ready
POST    /deployments/bulk_delete                              admin

POST    /automations/                                         deploy               # deploying with triggers
GET     /automations/{id:uuid}                                read
PUT     /automations/{id:uuid}                                admin
PATCH   /automations/{id:uuid}                                admin
DELETE  /automations/{id:uuid}                                admin
POST    /automations/count                                    read
POST    /automations/filter                                   read
GET     /automations/related-to/{resource_id}                 read
DELETE  /automations/owned-by/{resource_id}                   deploy               # each deploy begins with it
POST    /automations/templates/validate                       deploy
POST    /templates/validate                                   deploy

POST    /work_pools/                                          pools join           # worker start makes a missing one
GET     /work_pools/{work_pool}                               read
PATCH   /work_pools/{work_pool}                               pools join           # and gives it its job template
DELETE  /work_pools/{work_pool}                               admin
POST    /work_pools/count                                     read
POST    /work_pools/filter                                    read
POST    /work_pools/{work_pool}/concurrency_status            read
POST    /work_pools/{work_pool}/get_scheduled_flow_runs       work                 # marks queues ready
POST    /work_pools/{work_pool}/queues                        pools
GET     /work_pools/{work_pool}/queues/{name}                 read
PATCH   /work_pools/{work_pool}/queues/{name}                 pools
DELETE  /work_pools/{work_pool}/queues/{name}                 admin
POST    /work_pools/{work_pool}/queues/filter                 read
POST    /work_pools/{work_pool}/workers/filter                read
POST    /work_pools/{work_pool}/workers/heartbeat             work
DELETE  /work_pools/{work_pool}/workers/{name}                admin
WS      /work_pools/{work_pool}/workers/connect               work                 # heartbeats; may make the pool
POST    /work_queues/                                         pools
GET     /work_queues/{id:uuid}                                read
PATCH   /work_queues/{id:uuid}                                pools
DELETE  /work_queues/{id:uuid}                                admin
GET     /work_queues/{id:uuid}/status                         read
GET     /work_queues/name/{name}                              read
POST    /work_queues/filter                                   read
POST    /work_queues/{id:uuid}/concurrency_status             read
POST    /work_queues/{id:uuid}/get_runs                       work                 # not a read: marks the queue ready

POST    /concurrency_limits/                                  admin
GET     /concurrency_limits/{id:uuid}                         read
DELETE  /concurrency_limits/{id:uuid}                         admin
POST    /concurrency_limits/filter                            read
GET     /concurrency_limits/tag/{tag}                         read
DELETE  /concurrency_limits/tag/{tag}                         admin
POST    /concurrency_limits/tag/{tag}/reset                   admin
POST    /concurrency_limits/increment                         slots
POST    /concurrency_limits/decrement                         slots
POST    /v2/concurrency_limits/                               admin
GET     /v2/concurrency_limits/{id_or_name}                   read
PATCH   /v2/concurrency_limits/{id_or_name}                   admin
DELETE  /v2/concurrency_limits/{id_or_name}                   admin
POST    /v2/concurrency_limits/filter                         read
POST    /v2/concurrency_limits/increment                      slots
POST    /v2/concurrency_limits/increment-with-lease           slots
POST    /v2/concurrency_limits/decrement                      slots
POST    /v2/concurrency_limits/decrement-with-lease           slots
POST    /v2/concurrency_limits/leases/{lease_id}/renew        slots

POST    /block_documents/                                     blocks
GET     /block_documents/{id:uuid}                            read
PATCH   /block_documents/{id:uuid}                            blocks
DELETE  /block_documents/{id:uuid}                            admin
POST    /block_documents/count                                read
POST    /block_documents/filter                               read                 # its body may ask for secrets
POST    /block_types/                                         blocks
GET     /block_types/{id:uuid}                                read
PATCH   /block_types/{id:uuid}                                blocks
DELETE  /block_types/{id:uuid}                                admin
POST    /block_types/filter                                   read
GET     /block_types/slug/{slug}                              read
GET     /block_types/slug/{slug}/block_documents              read
GET     /block_types/slug/{slug}/block_documents/name/{name}  read                 # Block.load() asks with secrets
POST    /block_types/install_system_block_types               admin
POST    /block_schemas/                                       blocks
GET     /block_schemas/{id:uuid}                              read
DELETE  /block_schemas/{id:uuid}                              admin
POST    /block_schemas/filter                                 read
GET     /block_schemas/checksum/{checksum}                    read
GET     /block_capabilities/                                  read
GET     /collections/views/{view}                             read

POST    /variables/                                           variables
GET     /variables/{id:uuid}                                  read                 # plain text, by design
PATCH   /variables/{id:uuid}                                  variables
DELETE  /variables/{id:uuid}                                  admin
GET     /variables/name/{name}                                read
PATCH   /variables/name/{name}                                variables
DELETE  /variables/name/{name}                                admin
POST    /variables/count                                      read
POST    /variables/filter                                     read

PUT     /saved_searches/                                      admin
GET     /saved_searches/{id:uuid}                             read
DELETE  /saved_searches/{id:uuid}                             admin
POST    /saved_searches/filter                                read

POST    /ui/flows/count-deployments                           read
POST    /ui/flows/next-runs                                   read
POST    /ui/flow_runs/count-task-runs                         read
POST    /ui/flow_runs/history                                 read
POST    /ui/schemas/validate                                  read
POST    /ui/task_runs/count                                   read
POST    /ui/task_runs/dashboard/counts                        read
GET     /ui/task_runs/{id:uuid}                               read
"""

BESIDE_API: Final = """
GET     /metrics                                              admin                # of the server's own process
GET     /static/{rest:path}                                   any
"""

DOCS: Final = """
GET     /docs                                                 read
GET     /docs/oauth2-redirect                                 read
GET     /redoc                                                read
GET     /openapi.json                                         read
"""

PAGES: Final = """
GET     /                                                     any
GET     /ui-settings                                          any
GET     /index.html                                           any
GET     /v2                                                   any
GET     /v2/{rest:path}                                       any
GET     /assets/{rest:path}                                   any
GET     /ico/{rest:path}                                      any
GET     /robots.txt                                           any
GET     /favicon.ico                                          any
GET     /favicon-dark.ico                                     any
GET     /decorative_iso-pixel-grid_dark.svg                   any
GET     /decorative_iso-pixel-grid_light.svg                  any
GET     /marketing-banner-bg-dark.svg                         any
GET     /marketing-banner-bg-light.svg                        any
GET     /cancelled.svg                                        any                  # the newer UI asks for these
GET     /completed.svg                                        any
GET     /crashed.svg                                          any
GET     /failed.svg                                           any
GET     /pending.svg                                          any
GET     /running.svg                                          any
GET     /scheduled.svg                                        any
GET     /{page}                                               any
GET     /{page}/{rest:path}                                   any
"""

# fmt: off
PAGE_NAMES: Final = (  # what {page} stands for: how the older UI's addresses begin
    "artifacts", "automations", "blocks", "collections", "concurrency-limits", "concurrency-limits-v2", "dashboard",
    "deployments", "events", "flow-runs", "flows", "login", "notifications", "runs", "settings", "variables",
    "work-pools", "work-queues",
)
# fmt: on

SECRETS_IN_BODY: Final = ("POST", "/block_documents/filter")  # everywhere else the query says include_secrets
