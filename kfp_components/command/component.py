"""KFP interface of `command`; what it does is in step.py."""

from kfp_components.image import component


@component
def command(arguments: list) -> str:
    """One `onerec` command, as a person would type it. Returns its last line."""
    from kfp_components.command.step import run

    return run(arguments)
