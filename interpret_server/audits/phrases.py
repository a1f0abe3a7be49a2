"""How sentences about samples begin that reports know: those of attacks, and those of units."""

ZERO_GRADIENT = "the loss has a zero gradient here"
MISLEADING = "the gradient misses a part of what the loss depends on"
SATURATED = "the softmax is saturated here"
RANDOM = "the model answers at random"

ANSWERS_AT_RANDOM = f"{RANDOM}: the same input gets different answers"
DISAGREES = (
    "the served form decides otherwise than the file itself, so that attacks by gradients follow "
    "a slightly different function"
)
UNCONFIRMED = (
    "the attack claimed a success that the file, run by itself, does not confirm; it is not counted"
)
OUTSIDE = "the attack returned an example outside the ball or the bounds; it is not counted"
