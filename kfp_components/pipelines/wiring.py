"""How an artifact and its digest go from one component to the next: as the arguments `<name>` and `<name>_digest`."""

from __future__ import annotations

from kfp import dsl


def made(name: str, task: dsl.PipelineTask) -> dict:
    """Of an artifact that a task of this pipeline makes."""
    return {name: task.outputs[name], f"{name}_digest": task.outputs["Output"]}


def imported(name: str, uri, digest, artifact: type[dsl.Artifact] = dsl.Dataset) -> dict:
    """Of an artifact that an earlier pipeline made."""
    task = dsl.importer(artifact_uri=uri, artifact_class=artifact, reimport=True)
    return {name: task.output, f"{name}_digest": digest}


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """For a task that writes elsewhere than into its artifacts: KFP must run it every time."""
    return task.set_caching_options(False)
