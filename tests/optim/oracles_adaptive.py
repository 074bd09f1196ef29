"""What Adam's family and the sign methods should compute: one element, in float64 loops.

Each rule is its paper's algorithm: from one element's gradients, a list, its updates before the
learning rate, an ascent. Nothing here imports jax or fnn. 1 - b^t is rounded once, from rational
arithmetic, so that the oracle loses nothing where b is near 1.
"""

from fractions import Fraction
from functools import cache
from math import sqrt


@cache
def weight(b, t):
    """1 - b^t, the sum of the weights (1 - b) b^i of t values."""
    return float(1 - Fraction(b) ** t)


def sign(x):
    """-1, 0 or 1; of a complex number, where it points."""
    if isinstance(x, complex):
        return x / abs(x) if x else x
    return float(x > 0) - float(x < 0)


def ratio(a, b):
    """a / b; 0 / 0, where nothing was measured yet, is 0."""
    return a / b if b else 0.0


def descend(rule):
    """The optimizer of a rule: with a learning rate and decoupled weight decay."""

    def optimizer(gs, p, learning_rate, weight_decay=0.0, **options):
        updates = []
        for u in rule(gs, p, **options):
            updates.append(-learning_rate * (u + weight_decay * p))
            p += updates[-1]
        return updates

    return optimizer


def adam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Kingma & Ba 2015, algorithm 1; eps_root stands inside the root."""
    m = v = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        m_hat, v_hat = m / weight(b1, t), v / weight(b2, t)
        updates.append(ratio(m_hat, sqrt(v_hat + eps_root) + eps))
    return updates


def amsgrad(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, correct_first=False):
    """Reddi et al. 2018, algorithm 2, with Adam's corrections after the maximum (or before it)."""
    m = v = largest = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        largest = max(largest, v / weight(b2, t) if correct_first else v)
        v_hat = largest if correct_first else largest / weight(b2, t)
        updates.append(ratio(m / weight(b1, t), sqrt(v_hat + eps_root) + eps))
    return updates


def adamax(gs, p, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 2, with |g| + eps for |g|."""
    m = norm = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        norm = max(b2 * norm, abs(g) + eps)
        updates.append(ratio(m / weight(b1, t), norm))
    return updates


def nadam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Dozat 2016, algorithm 2, with mu_t = b1 throughout: the products of mu are powers."""
    m = n = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        n = b2 * n + (1 - b2) * abs(g) ** 2
        m_bar = b1 * m / weight(b1, t + 1) + (1 - b1) * g / weight(b1, t)
        updates.append(ratio(m_bar, sqrt(n / weight(b2, t) + eps_root) + eps))
    return updates


def radam(gs, p, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0):
    """Liu et al. 2020, algorithm 2 (where threshold is 4 and eps 0)."""
    m = v = 0.0
    rho_inf = 2 / (1 - b2) - 1
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        m_hat = m / weight(b1, t)
        power = Fraction(b2) ** t
        rho = float(2 / (1 - Fraction(b2)) - 1 - 2 * t * power / (1 - power))
        if rho > threshold:
            r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            updates.append(ratio(r * m_hat, sqrt(v / weight(b2, t) + eps_root) + eps))
        else:
            updates.append(m_hat)
    return updates


def belief(gs, p, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    """Zhuang et al. 2020, algorithm 2; its one eps is eps_root in the average, eps at the root."""
    m = s = 0.0
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * abs(g - m) ** 2 + eps_root
        updates.append(ratio(m / weight(b1, t), sqrt(s / weight(b2, t)) + eps))
    return updates


def yogi(gs, p, b1=0.9, b2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6):
    """Zaheer et al. 2018, algorithm 2, with Adam's corrections."""
    m, v = 0.0, initial_accumulator_value
    updates = []
    for t, g in enumerate(gs, start=1):
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * sign(v - abs(g) ** 2) * abs(g) ** 2
        updates.append(ratio(m / weight(b1, t), sqrt(v / weight(b2, t) + eps_root) + eps))
    return updates


def adan(gs, p, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    """Xie et al. 2022, algorithm 1, with Adam's corrections; the paper's betas are 1 - b here."""
    beta1, beta2, beta3 = 1 - b1, 1 - b2, 1 - b3
    m = v = n = 0.0
    updates = []
    for k, g in enumerate(gs, start=1):
        change = g - gs[max(k - 2, 0)]  # none at first
        m = (1 - beta1) * m + beta1 * g
        v = (1 - beta2) * v + beta2 * change
        n = (1 - beta3) * n + beta3 * abs(g + (1 - beta2) * change) ** 2
        ahead = m / weight(b1, k) + (1 - beta2) * v / weight(b2, k)
        updates.append(ratio(ahead, sqrt(n / weight(b3, k) + eps_root) + eps))
    return updates


def lion(gs, p, b1=0.9, b2=0.99):
    """Chen et al. 2023, algorithm 2."""
    m = 0.0
    updates = []
    for g in gs:
        updates.append(sign(b1 * m + (1 - b1) * g))
        m = b2 * m + (1 - b2) * g
    return updates


def sign_sgd(gs, p):
    """Bernstein et al. 2018, algorithm 1."""
    return [sign(g) for g in gs]


def signum(gs, p, beta=0.9):
    """Bernstein et al. 2018, algorithm 2."""
    m, updates = 0.0, []
    for g in gs:
        m = beta * m + (1 - beta) * g
        updates.append(sign(m))
    return updates


def optimistic_gradient_descent(gs, p, learning_rate, alpha=1.0, beta=1.0):
    """Mokhtari et al. 2020, equation 6: x_{k+1} = x_k - (a + b) g_k + b g_{k-1}."""
    before = [gs[0], *gs]
    return [
        -learning_rate * ((alpha + beta) * g - beta * old)
        for g, old in zip(gs, before, strict=False)
    ]


def optimistic_adam(gs, p, learning_rate, optimism=None, **options):
    """Daskalakis et al. 2018, algorithm 1: theta -= 2 eta u_t, theta += eta u_{t-1}."""
    optimism = learning_rate if optimism is None else optimism
    us = adam(gs, p, **options)
    pairs = zip(us, [us[0], *us], strict=False)
    return [-(learning_rate + optimism) * u + optimism * old for u, old in pairs]


def rprop(
    gs, p, learning_rate, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0
):
    """Riedmiller & Braun 1993, in the form of Igel & Huesken 2000 (iRprop-): after a change of
    sign the gradient counts as zero, in this step and in the next comparison."""
    step, before = learning_rate, 0.0
    updates = []
    for g in gs:
        turn = sign(g) * sign(before)
        if turn != 0:
            step *= eta_plus if turn > 0 else eta_minus
            step = min(max(step, min_step_size), max_step_size)
        if turn < 0:
            g = 0.0
        updates.append(-sign(g) * step)
        before = g
    return updates
