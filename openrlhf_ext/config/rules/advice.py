"""What is allowed and said aloud before a run of `rl`: lines for the user, not errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from openrlhf_ext.config.rl import RLConfig

Advice = Callable[[RLConfig], Iterator[str]]


def kl_estimator_fits_its_place(config: RLConfig) -> Iterator[str]:
    kl = config.algo.kl
    if kl.init_coef == 0:
        return
    if kl.use_loss and kl.estimator == "k1" and not kl.unbiased_gradient:
        yield (
            "--algo.kl.estimator k1 in the loss has a gradient of expectation zero: it does not hold the policy near "
            "the reference; take k2 or k3, or add --algo.kl.unbiased_gradient"
        )
    if not kl.use_loss and kl.estimator != "k1":
        yield f"--algo.kl.estimator {kl.estimator} in the reward: only k1 is an unbiased penalty there"


def engines_have_devices_of_their_own(config: RLConfig) -> Iterator[str]:
    if config.train.async_enable and config.train.colocate_all:
        yield "--train.colocate_all with --train.async_enable: models share devices, engines have their own"


ADVICE: tuple[Advice, ...] = (kl_estimator_fits_its_place, engines_have_devices_of_their_own)
