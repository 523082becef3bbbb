"""What a Ray cluster has: `python -m openrlhf_ext.cluster.look ADDRESS BIND` prints it as JSON."""

from __future__ import annotations

import json
import sys

from openrlhf_ext.cluster.environment import prepare_environment
from openrlhf_ext.errors import UserError

UNITS = ("CPU", "GPU")


def main(address: str, bind: str) -> int:
    prepare_environment(address, bind)
    import ray

    from openrlhf_ext.cluster.session import RaySettings, ray_session

    with ray_session(RaySettings(address, bind)):
        total = ray.cluster_resources()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = {unit: max((node.get(unit, 0) for node in nodes), default=0) for unit in UNITS}
    print(json.dumps({"total": {unit: total.get(unit, 0) for unit in UNITS}, "largest": largest}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
