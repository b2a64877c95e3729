"""Match losses of a user's own, as a driver script would bring them."""

from raybrew.losses.features import from_function, match_loss


def mean_absolute_error(state_S, state_T, mask=None):
    if mask is None:
        return (state_S - state_T).abs().mean()
    return ((state_S - state_T).abs() * mask.unsqueeze(-1)).sum() / (mask.sum() * state_S.shape[-1])


def own_distance(pooling: str = "mean"):
    return match_loss("rkd_distance", {"pooling": pooling})


def builds_a_number():
    return 3


OWN_LOSS = from_function("own", mean_absolute_error)
NOT_A_LOSS = 3
