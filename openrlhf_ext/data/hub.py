"""Whether the Hugging Face hub knows a name: asked once, before a library asks six times with pauses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from openrlhf_ext.errors import DataError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ANSWER_WITHIN_S = 10.0


def local_files(name: str) -> Path:
    """The folder of a model's files: `name` itself, or, of a hub name, the revision that was downloaded last.

    Where nothing was downloaded it is a folder that is not there.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else Path(name)


def check_on_hub(name: str, kind: Literal["dataset", "model"]) -> None:
    """Raise DataError within seconds if the hub cannot be reached, or has no `name` that we may read.

    With HF_HUB_OFFLINE set nothing is asked: the libraries then look into the local cache only.
    """
    import httpx
    import huggingface_hub.constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    what = "data set" if kind == "dataset" else "model"
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=ANSWER_WITHIN_S)
    except GatedRepoError:
        raise DataError(
            f"the {what} {name} asks for its licence to be accepted: do so on the hub, set HF_TOKEN."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise DataError(
            f"{name} is neither a local path nor a {what} on the hub that can be read: check the name, "
            "and set HF_TOKEN if it is private."
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise DataError(
            f"{name} is not a local path, and the Hugging Face hub cannot be asked for a {what} of that name "
            f"({type(error).__name__}): check the path or the network, or set HF_HUB_OFFLINE=1 to use the local cache."
        ) from None
