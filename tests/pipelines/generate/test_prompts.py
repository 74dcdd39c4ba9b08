import pytest

from pipelines.generate.prompts import prompt_of, seed_of, with_article


@pytest.mark.parametrize(
    ("name", "written", "prompt"),
    [
        ("bird", " Two Birds on\n a wire ", "Two Birds on a wire"),
        ("airplane", "a red one in the sky", "a photo of an airplane, a red one in the sky"),
        ("maple_tree", "the maple tree in autumn", "the maple tree in autumn"),
        ("cat", "a category", "a photo of a cat, a category"),
        ("cat", " \n", ""),
    ],
)
def test_a_prompt_names_its_class(name: str, written: str, prompt: str) -> None:
    assert prompt_of(name, written) == prompt


def test_a_class_is_named_as_in_a_sentence() -> None:
    assert [with_article(name) for name in ("airplane", "maple_tree", "Orchid")] == [
        "an airplane", "a maple tree", "an Orchid",
    ]  # fmt: skip


def test_seeds_depend_on_each_part_and_fit_into_63_bits() -> None:
    assert seed_of(0, "bird", 1) == seed_of(0, "bird", 1)
    seeds = {seed_of(0, "bird", 1), seed_of(1, "bird", 1), seed_of(0, "bir", "d1"), seed_of(0, "bird", 11)}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
