"""Plain formulas on probabilities, written apart from the package: slow, naive, float64."""

import torch
from torch import Tensor


def _p(logits: Tensor, temperature) -> Tensor:
    scaled = torch.exp(logits / temperature)
    return scaled / scaled.sum(-1, keepdim=True)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * torch.log(p / q)).sum(-1)


def ce(s, t, temperature):
    return -(_p(t, temperature) * torch.log(_p(s, temperature))).sum(-1)


def mse(s, t, temperature):
    return ((s - t) ** 2 / temperature**2).mean(-1)


def kl(s, t, temperature):
    return _kl(_p(t, temperature), _p(s, temperature))


def reverse_kl(s, t, temperature):
    return _kl(_p(s, temperature), _p(t, temperature))


def jsd(s, t, temperature, beta=0.5):
    p, q = _p(t, temperature), _p(s, temperature)
    m = beta * p + (1 - beta) * q
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def skew_kl(s, t, temperature, skew=0.1):
    p, q = _p(t, temperature), _p(s, temperature)
    return _kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl(s, t, temperature, skew=0.1):
    p, q = _p(t, temperature), _p(s, temperature)
    return _kl(q, skew * q + (1 - skew) * p)


def adaptive_kl(s, t, temperature, mu=0.5):
    p, q = _p(t, temperature), _p(s, temperature)
    shares = []
    for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
        head, tail, mass = 0.0, 0.0, 0.0
        for teacher, student in sorted(zip(p_row, q_row, strict=True), key=lambda pair: -pair[0]):
            if mass < mu:
                head += abs(teacher - student)
            else:
                tail += abs(teacher - student)
            mass += teacher
        shares.append(head / (head + tail))
    share = torch.tensor(shares, dtype=p.dtype)
    return share * _kl(p, q) + (1 - share) * _kl(q, p)


def tvd(s, t, temperature):
    return (_p(t, temperature) - _p(s, temperature)).abs().sum(-1) / 2


def dkd(s, t, temperature, labels, alpha=1.0, beta=8.0):
    values = []
    for row, label in enumerate(labels.tolist()):
        p, q = _p(t[row], temperature), _p(s[row], temperature)
        others = [c for c in range(len(p)) if c != label]
        rest_p, rest_q = p[others].sum(), q[others].sum()
        target = p[label] * torch.log(p[label] / q[label]) + rest_p * torch.log(rest_p / rest_q)
        rest = _kl(p[others] / rest_p, q[others] / rest_q)
        values.append(alpha * target + beta * rest)
    return torch.stack(values)


def dist(s, t, temperature, beta=1.0, gamma=1.0):
    p, q = _p(t, temperature), _p(s, temperature)

    def correlation(a, b):
        return torch.corrcoef(torch.stack([a, b]))[0, 1]

    by_row = torch.stack([1 - correlation(q[row], p[row]) for row in range(len(p))])
    by_class = torch.stack([1 - correlation(q[:, c], p[:, c]) for c in range(p.shape[1])])
    return beta * by_row + gamma * by_class.mean()


def logit_std(s, t, temperature, unbiased=False):
    def z(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (x.std(-1, keepdim=True, correction=int(unbiased)) + 1e-7)

    return kl(z(s), z(t), temperature)


def bce(s, t, temperature):
    y = 1 / (1 + torch.exp(-t / temperature))
    x = 1 / (1 + torch.exp(-s / temperature))
    return -(y * torch.log(x) + (1 - y) * torch.log(1 - x)).mean(-1)
