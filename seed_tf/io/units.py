"""Numbers as a person writes them."""


def duration(seconds):
    """Seconds as a person writes them: "42 s", "7 min 05 s", "3 h 20 min".

    >>> duration(425)
    '7 min 05 s'
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def readable(count):
    """A large number as a person writes it.

    >>> readable(1_234_000_000_000)
    '1.23 T'
    """
    for unit in ("", " k", " M", " G", " T", " P"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} E"


def readable_bytes(count):
    """Bytes as a person writes them.

    >>> readable_bytes(33_554_432)
    '33.6 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
