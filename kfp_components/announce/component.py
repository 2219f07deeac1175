"""KFP interface of `announce`, the exit task of every pipeline; what it does is in step.py."""

from kfp.dsl import PipelineTaskFinalStatus

from kfp_components.image import component


@component
def announce(pipeline: str, day: str, root: str, source: str, status: PipelineTaskFinalStatus) -> str:
    """Tells how the pipeline ended, also when it failed. Returns the state."""
    from kfp_components.announce.step import run

    return run(pipeline=pipeline, day=day, root=root, source=source, status=status)
