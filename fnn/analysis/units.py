"""Numbers as tables show them: three digits and a unit."""


def short(n: float) -> str:
    """A count.

    >>> short(12_345)
    '12.3 k'
    """
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def of_bytes(n: int) -> str:
    """A number of bytes.

    >>> of_bytes(3 * 2**19)
    '1.5 MiB'
    >>> of_bytes(1010 * 2**20)
    '1010 MiB'
    """
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:  # 1000 to 1023 have four digits
            return f"{n / size:.0f} {unit}" if n >= 999.5 * size else f"{n / size:.3g} {unit}"
    return f"{n} B"


def of_seconds(s: float) -> str:
    """A duration.

    >>> of_seconds(0.0123)
    '12.3 ms'
    """
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if s >= size:
            return f"{s / size:.3g} {unit}"
    return f"{s * 1e6:.3g} us"
