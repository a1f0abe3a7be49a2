"""Sentences about samples that reports know by their words."""

ZERO_GRADIENT = "the loss has a zero gradient"  # how attacks begin to say so
RANDOM = "the file gave the same input two different answers"
DISAGREES = (
    "the served form decides otherwise than the file itself, so that attacks by gradients follow "
    "a slightly different function"
)
UNCONFIRMED = (
    "the attack claimed a success that the file, run by itself, does not confirm; it is not counted"
)
OUTSIDE = "the attack returned an example outside the ball or the bounds; it is not counted"
