"""How long OpenMP's threads spin where they wait for each other. Imports no torch.

GNU OpenMP lets a thread spin for 3 ms at a barrier before it sleeps. As soon as others want the
cores too, the front end or another model's worker, spinning threads keep from them just the core
that the thread that is waited for would need: on two cores a call of 4 ms beside a running attack
on another model took up to 160 ms, and takes up to 25 where they spin for a sixtieth of that.
"""

import os

_SPINS = 5000  # of which GNU OpenMP takes 100,000 for a millisecond
_COUNT, _POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def environment() -> dict[str, str]:
    """Variables for a new process; those that the user has set stay.

    They count where they are set before torch, and GNU OpenMP with it, is loaded.
    """
    if _COUNT in os.environ or _POLICY in os.environ:
        return {}
    return {_COUNT: str(_SPINS)}
