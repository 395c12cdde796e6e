"""Which source of data a config means, and that it reads what else the config says of data."""


def source_of(config, sources, default):
    """The source that `config.data` names: "path" where a path of the user's own replaces the default.

    Args:
      config: `config.data`, with `name` and `path`.
      sources: the names there are.
      default: the one that a path replaces.

    Raises:
      ValueError: an unknown name.
    """
    if config.name not in sources:
        raise ValueError(f"config.data.name={config.name!r}: unknown, want one of {', '.join(sources)}")
    return "path" if config.path and config.name == default else config.name


def check_read(config, source, fields, read):
    """Raises ValueError if the config gives one of `fields` that the source does not `read`: it would do nothing."""
    for field in fields:
        if config[field] and field not in read:
            raise ValueError(f"config.data.{field}={config[field]!r}: {source} does not read it; drop one of the two")
