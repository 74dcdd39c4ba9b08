"""Verify: check that everything on the disk agrees with everything else."""

from pipelines.progress import OnTick, ignore
from pipelines.verify.config import Problem, Summary, VerifyConfig

__all__ = ["Problem", "Summary", "VerifyConfig", "run"]


def run(config: VerifyConfig, on_tick: OnTick = ignore) -> Summary:
    """Run the stage; see `pipelines.verify.stage`."""
    from pipelines.verify import stage  # here, because a configuration needs no heavy library

    return stage.run(config, on_tick)
