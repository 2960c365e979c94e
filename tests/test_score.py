import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from toy_prompts import Lengths

from ditprune.cli import main
from ditprune.convert import convert
from ditprune.identity import identify
from ditprune.image_files import read_images
from ditprune.metrics import (
    ADMInceptionScore,
    DigitsClassifier,
    FIDInfinity,
    FrechetDistance,
    KernelInceptionDistance,
    frechet_distance,
    paired_errors,
)
from ditprune.metrics.paired import PairedMetric
from ditprune.metrics.prompted import PromptMetric
from ditprune.score import score
from ditprune.statistics_file import statistics
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
    with pytest.raises(ValueError, match="hold different numbers of images, or of other sizes"):
        score(
            folders / "images",
            folders / "reference",
            folders / "dense",
            DigitsClassifier(),
            [FrechetDistance()],
        )


class Darker(PairedMetric):
    """How many pixels are darker."""

    name = "darker"

    def compare(self, images, others):
        return (images < others).flatten(1).double().mean(1)


def test_pairs_can_be_compared_by_other_metrics_too_if_there_are_some(folders, digits):
    images, real = folders / "images", folders / "reference"
    options = {"extractor": DigitsClassifier(), "metrics": [FrechetDistance()]}
    dense = score(folders / "dense", real, images, paired_metrics=[Darker()], **options)
    dark = (digits[:40].float() * 0.9).to(torch.uint8)
    assert dense["metrics"]["darker"] == pytest.approx((dark < digits[:40]).double().mean().item())
    assert "mse" in dense["metrics"]
    assert dense["protocols"] == ["fid"]
    with pytest.raises(ValueError, match="paired_metrics compare with the dense model's images"):
        score(images, real, paired_metrics=[Darker()], **options)


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


def test_images_are_scored_with_the_prompts_of_their_lines_and_read_once(
    folders, digits, monkeypatch
):
    words = ["x" * (i % 7 + 1) for i in range(40)]
    (folders / "prompts.txt").write_text("\n".join(words) + "\n")
    reads = []
    opened = Image.open
    monkeypatch.setattr("PIL.Image.open", lambda path: reads.append(str(path)) or opened(path))
    found = score(
        folders / "images",
        folders / "reference",
        folders / "dense",
        DigitsClassifier(),
        [FrechetDistance()],
        prompts=folders / "prompts.txt",
        prompt_metrics=[Lengths()],
    )
    expected = Lengths().score(digits[:40], words)
    assert found["metrics"]["lengths/v1"] == pytest.approx(expected.mean().item(), rel=1e-12)
    summary = found["per_image"]["lengths/v1"]
    assert summary["low"] < summary["mean"] < summary["high"]
    assert len(reads) == len(set(reads)) == 120


@pytest.mark.parametrize(
    ("text", "metrics", "message"),
    [
        ("a\nb\n", [Lengths()], "2 prompts in .* for 40 images"),
        ("a\n" * 40, [], "belong together"),
        (None, [Lengths()], "cannot read the prompts"),
    ],
)
def test_prompts_that_are_not_one_for_each_image_are_refused(folders, text, metrics, message):
    path = folders / "prompts.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        score(
            folders / "images",
            folders / "reference",
            extractor=DigitsClassifier(),
            prompts=path,
            prompt_metrics=metrics,
        )


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (np.arange(40) // 4, True),
        (np.arange(40)[::-1] // 4, True),
        (np.eye(10)[np.arange(40) // 4], True),
        (np.array([f"class {i // 4}" for i in range(40)]), True),
        (np.random.default_rng(0).permutation(40) // 4, False),
        (np.zeros(40), False),
    ],
)
def test_images_sorted_by_class_have_no_adm_inception_score(folders, digits, labels, refused):
    np.savez(folders / "adm.npz", digits[:40].permute(0, 2, 3, 1).numpy(), labels)
    settings = {"extractor": DigitsClassifier(), "metrics": [ADMInceptionScore()]}
    if refused:
        with pytest.raises(ValueError, match="sorted by class"):
            score(folders / "adm.npz", folders / "reference", **settings)
    else:
        assert score(folders / "adm.npz", folders / "reference", **settings)["metrics"]


def test_a_folder_of_folders_of_classes_has_no_adm_inception_score(folders):
    for kind in ("cats", "dogs"):
        shutil.copytree(folders / "images", folders / "classes" / kind)
    with pytest.raises(ValueError, match="sorted by folder"):
        score(
            folders / "classes",
            folders / "reference",
            extractor=DigitsClassifier(),
            metrics=[ADMInceptionScore()],
        )


def test_statistics_stand_for_the_images_they_are_of(folders):
    classifier = DigitsClassifier()
    statistics(folders / "reference", folders / "stats.npz", classifier)
    by_statistics = score(folders / "images", folders / "stats.npz", extractor=classifier)
    by_images = score(folders / "images", folders / "reference", extractor=classifier)
    assert by_statistics["num_reference"] == 40
    fids = [found["metrics"]["fid"] for found in (by_statistics, by_images)]
    assert fids[0] == pytest.approx(fids[1], rel=1e-6)
    with np.load(folders / "stats.npz") as file:
        pool = classifier.extract(torch.cat(list(read_images(folders / "reference")))).pool
        assert np.allclose(file["mu"], pool.double().mean(0))
        assert np.allclose(file["sigma"], np.cov(pool.double().numpy(), rowvar=False))


def test_statistics_of_another_network_or_for_metrics_that_need_images_are_refused(folders):
    class Other(DigitsClassifier):
        name = "other/1234"

    statistics(folders / "reference", folders / "stats.npz", DigitsClassifier())
    with pytest.raises(ValueError, match=r"are of digits-classifier/.* seen by other/1234"):
        score(folders / "images", folders / "stats.npz", extractor=Other())
    with pytest.raises(ValueError, match="no images, which KernelInceptionDistance compare with"):
        score(
            folders / "images",
            folders / "stats.npz",
            extractor=DigitsClassifier(),
            metrics=[FrechetDistance(), KernelInceptionDistance()],
        )


def test_a_file_of_adms_evaluator_gives_statistics_to_fid_and_images_to_the_rest(
    folders, digits, caplog
):
    statistics(folders / "dense", folders / "stats.npz", DigitsClassifier())
    with np.load(folders / "stats.npz") as file:
        mixed = {"mu": file["mu"], "sigma": file["sigma"]}
    np.savez(folders / "adm.npz", digits[40:].permute(0, 2, 3, 1).numpy(), **mixed)
    metrics = [FrechetDistance(), FIDInfinity(), KernelInceptionDistance()]
    scores = [
        score(folders / "images", folders / name, None, DigitsClassifier(), metrics)
        for name in ("adm.npz", "dense", "reference")
    ]
    found, of_dense, of_real = (each["metrics"] for each in scores)
    assert found["fid"] == pytest.approx(of_dense["fid"], abs=1e-6)
    assert found["fid_infinity"] == pytest.approx(of_dense["fid_infinity"], abs=1e-6)
    assert found["kid"] == of_real["kid"]
    real = identify(read_images(folders / "adm.npz"))
    assert scores[0]["num_reference"] == real.num_images == len(digits[40:])
    assert scores[0]["compared_with"].startswith(f"{real.name}; Frechet distances to adm.npz, ")
    assert scores[2]["compared_with"] == real.name
    assert scores[0]["images_sha256"] == identify(read_images(folders / "images")).sha256
    assert "no adm.json to say of which network" in caplog.text


def test_partners_have_one_name_whatever_they_are_saved_as(folders):
    settings = {"extractor": DigitsClassifier(), "metrics": [FrechetDistance()]}
    (folders / "dense" / "003.png").rename(folders / "dense" / "0600.png")
    with pytest.raises(ValueError, match=r"003\.png of .*images would meet 004\.png of"):
        score(folders / "images", folders / "reference", folders / "dense", **settings)


def test_prompts_belong_to_images_as_people_count(folders):
    """And an invisible mark at the beginning of a file belongs to no prompt."""

    class Heard(PromptMetric):
        name = "heard"

        def __init__(self):
            self.prompts = []

        def to(self, device):
            return self

        def score(self, images, prompts):
            self.prompts.extend(prompts)
            return images.flatten(1).double().mean(1)

    images, metric = folders / "numbered", Heard()
    images.mkdir()
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(images / f"{i}.png")
    (folders / "words.txt").write_text("\n".join(f"p{i}" for i in range(12)), "utf-8-sig")
    settings = {"extractor": DigitsClassifier(), "metrics": [FrechetDistance()]}
    words = folders / "words.txt"
    found = score(images, folders / "reference", prompts=words, prompt_metrics=[metric], **settings)
    assert metric.prompts == [f"p{i}" for i in range(12)]
    assert found["metrics"]["heard"] == pytest.approx(110)
    assert torch.cat(list(read_images(images))).flatten(1)[:, 0].tolist() == list(range(0, 240, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x["sigma"].__setitem__((0, 0), np.nan), "no mean and covariance"),
        (lambda x: x["sigma"].__setitem__((0, 1), np.inf), "no mean and covariance"),
        (lambda x: x["sigma"].__setitem__((0, 1), 99.0), "no mean and covariance"),
        (lambda x: x["sigma"].__imul__(-1), "no mean and covariance"),
        (lambda x: x["mu"].__setitem__(0, np.nan), "no mean and covariance"),
        (lambda x: x.update(mu=x["mu"][:-1]), r"\[63\] and \[64, 64\]"),
        (lambda x: x.update(mu=x["mu"][None]), r"\[1, 64\] and \[64, 64\]"),
        (lambda x: x.update(mu_s=x["mu"]), "cannot read mu_s and sigma_s"),
        (lambda x: x.update(mu=np.array(["a"])), "cannot read mu and sigma"),
    ],
)
def test_damaged_statistics_give_no_distance(folders, change, message):
    statistics(folders / "reference", folders / "stats.npz", DigitsClassifier())
    with np.load(folders / "stats.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folders / "stats.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        score(folders / "images", folders / "stats.npz", extractor=DigitsClassifier())


@pytest.mark.parametrize("target", ["images.npz", "stats.json", "stats"])
def test_statistics_replace_no_images_and_are_named_as_what_they_are(folders, digits, target):
    np.savez(folders / "images.npz", digits[:40].permute(0, 2, 3, 1).numpy())
    before = (folders / "images.npz").read_bytes()
    with pytest.raises(ValueError, match="an .npz of their own"):
        statistics(folders / "images.npz", folders / target, DigitsClassifier())
    assert (folders / "images.npz").read_bytes() == before


def test_results_that_cannot_be_written_are_told_before_the_work(folders):
    class Never(DigitsClassifier):
        def extract(self, images):
            raise AssertionError("began to work")

    for results in (folders / "images", folders / "images" / "000.png" / "r.json"):
        with pytest.raises(ValueError, match="is a folder|cannot write to"):
            score(folders / "images", folders / "reference", extractor=Never(), results=results)


def test_a_damaged_npz_is_told_as_one(folders, digits):
    path = folders / "images.npz"
    np.savez(path, digits.permute(0, 2, 3, 1).repeat(50, 1, 1, 1).numpy())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: Bad CRC"):
        list(read_images(path))
    with pytest.raises(ValueError, match="is damaged: Bad CRC"):
        convert(path, folders / "back")
    assert not (folders / "back").exists()
