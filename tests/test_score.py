import json

import numpy as np
import pytest
import torch
from PIL import Image

from ditprune.cli import main
from ditprune.metrics import DigitsClassifier, FrechetDistance, frechet_distance, paired_errors
from ditprune.score import score
from ditprune.zoo.digits import load_split


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return ((load_split().train.images[:80] + 1) * 127.5).round().to(torch.uint8)


def write(folder, images) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")


@pytest.fixture
def folders(tmp_path, digits):
    """Forty digits against the other forty; the dense model's are the first, a shade darker."""
    dark = (digits[:40].float() * 0.9).to(torch.uint8)
    for name, images in (("images", digits[:40]), ("reference", digits[40:]), ("dense", dark)):
        write(tmp_path / name, images)
    return tmp_path


def test_folders_are_measured_as_their_images_are(folders, digits):
    found = score(
        folders / "images",
        folders / "reference",
        folders / "dense",
        DigitsClassifier(),
        [FrechetDistance()],
        folders / "out" / "results.json",
    )
    classifier = DigitsClassifier()
    pools = [classifier.extract(half).pool for half in (digits[:40], digits[40:])]
    assert found["metrics"]["fid"] == pytest.approx(frechet_distance(*pools).item(), rel=1e-9)
    dark = (digits[:40].float() * 0.9).to(torch.uint8)
    for name, errors in paired_errors(digits[:40], dark).items():
        assert found["metrics"][name] == pytest.approx(errors.mean().item())
    assert (found["num_images"], found["num_reference"]) == (40, 40)
    assert json.loads((folders / "out" / "results.json").read_text()) == found


def test_a_folder_and_an_npz_of_the_same_images_are_worth_the_same(folders, digits):
    np.savez(folders / "images.npz", digits[:40].permute(0, 2, 3, 1).numpy())
    of_folder, of_npz = (
        score(folders / name, folders / "reference", extractor=DigitsClassifier())["metrics"]
        for name in ("images", "images.npz")
    )
    assert of_folder == of_npz
    assert set(of_folder) >= {"fid", "kid", "inception_score", "precision", "recall"}


def test_images_without_partners_are_refused(folders):
    (folders / "dense" / "039.png").unlink()
    with pytest.raises(ValueError, match="hold different numbers of images"):
        score(
            folders / "images",
            folders / "reference",
            folders / "dense",
            DigitsClassifier(),
            [FrechetDistance()],
        )


def test_equal_images_have_an_infinite_psnr_which_json_is_told_as_text(folders):
    images = folders / "images"
    found = score(images, folders / "reference", images, DigitsClassifier(), [FrechetDistance()])
    assert found["metrics"]["psnr"] == "inf"


def test_the_command_takes_folders(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    extractor = "--extractor=ditprune.metrics.DigitsClassifier"
    main(["score", "images", "reference", extractor, "--dense=dense", "--results=results.json"])
    assert '"fid"' in capsys.readouterr().out
    assert "mse" in json.loads((folders / "results.json").read_text())["metrics"]


def test_a_mistake_on_the_command_line_is_a_paragraph(folders):
    with pytest.raises(SystemExit, match="ditprune: there are no images in"):
        main(["score", str(folders / "nowhere"), str(folders / "reference")])
