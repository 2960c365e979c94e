import json
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from ditprune.datamodules import PromptDataModule
from ditprune.families import Batch

WORDS = [f"prompt {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_prompts_of_a_list_a_text_file_and_data_sets_are_the_same(tmp_path):
    records = "\n".join(json.dumps({"caption": word}) for word in WORDS)
    (tmp_path / "folder").mkdir()
    written(tmp_path / "folder" / "train.jsonl", records)
    sources = [
        WORDS,
        written(tmp_path / "prompts.txt", "\n\n".join(WORDS) + "\n"),
        written(tmp_path / "prompts.jsonl", records),
        written(tmp_path / "prompts.csv", "id,caption\n" + "\n".join(f"0,{w}" for w in WORDS)),
        str(tmp_path / "folder"),
    ]
    for source in sources:
        assert PromptDataModule(source, column="caption").prompts == PromptDataModule(WORDS).prompts


def test_some_are_kept_after_a_shuffle_that_the_seed_decides():
    everything = PromptDataModule(WORDS).prompts
    assert sorted(everything) == sorted(WORDS)
    assert everything != WORDS
    assert PromptDataModule(WORDS, num_prompts=5).prompts == everything[:5]
    assert PromptDataModule(WORDS, seed=1).prompts != everything


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "no prompt in"),
        ("gr\u00fcn".encode("latin-1"), "not UTF-8"),
        (None, "cannot read the prompts in .*No such file"),
    ],
)
def test_text_files_that_give_no_prompts_are_refused(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        PromptDataModule(str(path))


def test_data_sets_that_give_no_prompts_are_refused(tmp_path):
    source = written(tmp_path / "prompts.jsonl", json.dumps({"caption": "a cat"}))
    with pytest.raises(ValueError, match="no column 'prompt'; its columns are: caption"):
        PromptDataModule(source)
    with pytest.raises(ValueError, match=r"cannot load .*split 'test'"):
        PromptDataModule(source, split="test", column="caption")
    for missing in (str(tmp_path / "nothing.parquet"), str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="cannot load"):
            PromptDataModule(missing)
    with pytest.raises(ValueError, match="empty list"):
        PromptDataModule([])


class Trainer:
    def __init__(self, module) -> None:
        self.lightning_module = module


class Module:
    def __init__(self) -> None:
        self.asked = []

    def trajectory_points(self, prompts, num_samples, seed) -> list[Batch]:
        self.asked.append((prompts, num_samples, seed))
        one = torch.ones(1)
        return [Batch(torch.full((1, 2), float(seed)), one, {"text": one}, one)] * num_samples


def test_calibration_samples_are_drawn_once_for_each_seed():
    data, module = PromptDataModule(WORDS, num_calibration_samples=4, seed=3), Module()
    data.trainer = Trainer(module)
    own, same, other = (data.calibration_dataloader(*seed) for seed in ((), (3,), (0,)))
    assert own is same
    assert [batch.latents[0, 0].item() for batch in (own[0], other[0])] == [3, 0]
    assert module.asked == [(data.prompts[:4], 4, 3), (data.prompts[:4], 4, 0)]


def test_without_a_module_that_samples_there_is_no_calibration():
    data = PromptDataModule(WORDS)
    with pytest.raises(ValueError, match=r"trajectory_points.*NoneType has none"):
        data.calibration_dataloader()
    data.trainer = Trainer(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Linear has none"):
        data.calibration_dataloader()


def test_evaluation_takes_other_prompts_than_calibration_while_there_are_enough():
    data = PromptDataModule(WORDS, num_calibration_samples=8)
    assert data.evaluation_conditions(4).tolist() == [11, 10, 9, 8]
    assert data.evaluation_conditions(14)[-3:].tolist() == [0, 11, 10]
    assert [batch for [batch] in data.val_dataloader()] == data.prompts[:1]


def test_reference_images_of_any_size_are_read_in_colour_or_in_grey(tmp_path):
    images = torch.arange(24, dtype=torch.uint8).view(1, 4, 6), torch.zeros(3, 2, 2).byte() + 7
    for number, image in enumerate(images):
        to_pil_image(image).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    grey, colour = PromptDataModule(WORDS, reference_images=str(tmp_path)).reference_dataloader()
    assert torch.equal(grey, images[0].unsqueeze(0))
    assert torch.equal(colour, images[1].unsqueeze(0))


@pytest.mark.parametrize(
    ("folder", "message"),
    [(None, "EvaluationCallback no metrics"), ("nothing-here", "no images in nothing-here")],
)
def test_without_reference_images_there_is_nothing_to_compare_with(folder, message):
    with pytest.raises(ValueError, match=message):
        PromptDataModule(WORDS, reference_images=folder).reference_dataloader()


def test_prompts_to_score_by_are_those_that_the_conditions_stand_for():
    data = PromptDataModule(WORDS)
    conditions = data.evaluation_conditions(15)
    assert data.evaluation_prompts(15) == [data.prompts[i] for i in conditions]
