"""The command pipeline: one `onerec` command that acts on the present (rollback, housekeeping), run on the cluster."""

from kfp import dsl

from kfp_components.command.component import command as command_step
from kfp_components.pipelines.wiring import placed, uncached
from kfp_components.resources import RESOURCES


@dsl.pipeline(name="onerec-command", description="One onerec command on the workspace and the store")
def command(arguments: list):
    """No exit handler: the task of Airflow that submitted it waits for its end and says the command to try by hand."""
    uncached(placed(command_step(arguments=arguments), RESOURCES["command"]))
