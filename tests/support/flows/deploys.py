"""Everything that deploying asks of Prefect: `python deploys.py FOLDER POOL`."""

import sys
from pathlib import Path

from prefect import flow
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

folder, pool = Path(sys.argv[1]), sys.argv[2]
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
Secret(value="told-in-plain-text").save("shop-secret", overwrite=True)
for name in ("quick", "slow"):
    source = flow.from_source(str(folder), entrypoint=f"shop.py:{name}")
    source.deploy(
        f"{name}-{pool}", work_pool_name=pool, interval=86_400 if name == "slow" else None, print_next_steps=False
    )
