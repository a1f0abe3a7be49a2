"""How alike several images are in the features of a layer."""

from torch import Tensor


def mean_similarity(features: Tensor) -> Tensor:
    """For each of V variants, the mean cosine between its Gram matrix and those of the others.

    Args:
        features: `(N, V, C, *positions)`, V at least 2.

    Returns:
        `(N, V)`, from 0 to 1: the diversity term of Olah et al. 2017, "Feature visualization",
        before its sign.
    """
    maps = features.flatten(3) if features.dim() > 3 else features[..., None]
    channels, positions = maps.shape[2:]
    if channels <= positions:
        vectors = (maps @ maps.mT).flatten(2)
        products = vectors @ vectors.mT
    else:  # <A A', B B'> = |A' B|^2, without matrices of channels by channels
        crossed = maps[:, :, None].mT @ maps[:, None]
        products = crossed.square().sum((-2, -1))
    norms = products.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
    cosines = products / (norms[:, :, None] * norms[:, None])
    total = cosines.sum(2) - cosines.diagonal(dim1=1, dim2=2)
    return total / (features.shape[1] - 1)
