"""What a Ray cluster has: `python -m openrlhf_ext.cluster.look ADDRESS BIND [PATH ...]` prints it as JSON: the room on
each node for GPU and for CPU processes, and what each says of the paths."""

from __future__ import annotations

import json
import sys

from openrlhf_ext.cluster.environment import prepare_environment
from openrlhf_ext.errors import UserError


def main(address: str, bind: str, *paths: str) -> int:
    prepare_environment(address, bind)
    from openrlhf_ext.cluster.node_files import marks_on
    from openrlhf_ext.cluster.placement import nodes_now
    from openrlhf_ext.cluster.session import RaySettings, ray_session

    with ray_session(RaySettings(address, bind)):
        ids, nodes = nodes_now(gpu=False)
        gpus = [node.devices for node in nodes_now(gpu=True)[1]]
        marks = marks_on(ids, paths) if paths else {}
    print(
        json.dumps(
            [
                {"name": node.name, "CPU": node.devices, "GPU": gpu, "marks": marks.get(own)}
                for own, node, gpu in zip(ids, nodes, gpus, strict=True)
            ]
        )
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
