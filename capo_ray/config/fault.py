"""What is wrong with a configuration, in words."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration is not one that can run; the message names the field, the value and what to do."""
