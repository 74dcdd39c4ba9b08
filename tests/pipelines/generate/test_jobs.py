from pathlib import Path

from pipelines.generate import GenerateConfig
from pipelines.generate.jobs import jobs_of
from pipelines.generate.prompts import Prompt


def test_every_image_of_every_class_has_one_place_and_one_seed(tmp_path: Path) -> None:
    config = GenerateConfig(classes=("b", "a"), per_class=5, out=tmp_path, shard_size=4)
    prompts = {name: [Prompt(text=f"{name}{i}", origin={}) for i in range(2)] for name in config.classes}
    jobs = [job for shard in range(3) for job in jobs_of(config, shard, prompts)]
    assert [job.key for job in jobs[:5]] == ["000000000", "000000001", "000000002", "000000003", "000010000"]
    assert [(job.class_name, job.label, job.number) for job in jobs[:3]] == [("a", 0, 0), ("b", 1, 0), ("a", 0, 1)]
    assert len({(job.class_name, job.number) for job in jobs}) == len({job.seed for job in jobs}) == 10
    assert [job.prompt.text for job in jobs[:6:2]] == ["a0", "a1", "a0"]
