"""What configs are made of: a variant's kind of attention, and the name behind the colon of `--config=FILE:NAME`."""


def attention(name, **settings):
    """What a variant changes: its kind of attention, which stands with all of its settings."""
    return {"model": {"attention": {"name": name, **settings}}}


def check_name(name, known):
    """Raises ValueError unless what stands behind the colon is known."""
    if name not in known:
        raise ValueError(f"{name!r} behind the colon: want one of {', '.join(known)}, or no colon")
