"""A crawl, and the pool that an uninterrupted ingest makes of it. Tests copy what they change."""

from pathlib import Path

import pytest

from tests.pipelines.ingest.crawls import check, content, make_crawl, run


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crawl(tmp_path_factory.mktemp("source") / "crawl")


@pytest.fixture(scope="session")
def whole(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the pool of `crawl`, made without an interruption."""
    pool = tmp_path_factory.mktemp("whole") / "pool"
    run(pool, crawl)
    check(pool)
    return content(pool)
