import base64
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_report import make_report
from torchvision.transforms.functional import pil_to_tensor

from ditprune.pairs import Pair
from ditprune.report_page import page_of, save_page

PROMPT = '<script>alert("1")</script> & a cat'


def picture(side: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def figure() -> Figure:
    drawing = Figure(figsize=(4, 3))
    drawing.subplots().plot([1, 2, 3])
    return drawing


class Parsed(HTMLParser):
    """The tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def images(self) -> dict[str, list[Image.Image]]:
        found: dict[str, list[Image.Image]] = {}
        for tag, attributes in self.tags:
            if tag == "img":
                content = attributes["src"].partition(";base64,")[2]
                image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
                image.load()
                found.setdefault(attributes["alt"], []).append(image)
        return found


@pytest.fixture(scope="module")
def page() -> str:
    pair = Pair(PROMPT, "seed 0, sample 3, mse 0.5", picture(8, 1), picture(8, 1, seed=1))
    large = Pair("a photograph", "seed 0, sample 4, mse 0.25", picture(512), picture(512, seed=1))
    report = make_report(recipe={"saliency": "<b>Wanda</b>", "repair": "None"})
    rows = {"first pairs": [pair, large], "worst pairs by mse": [large]}
    return page_of(report, {"layers/row_variation": figure()}, rows)


def test_the_page_refers_to_nothing_outside_itself_and_runs_nothing(page):
    parsed = Parsed(page)
    links = [a[name] for _, a in parsed.tags for name in ("src", "href") if name in a]
    assert len(links) == 7
    assert all(link.startswith("data:image/") for link in links)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert not any(name.startswith("on") for _, a in parsed.tags for name in a)
    assert "url(" not in page
    assert "@import" not in page


def test_what_comes_from_users_is_text(page):
    parsed = Parsed(page)
    assert PROMPT in parsed.texts
    assert "b" not in [tag for tag, _ in parsed.tags]
    assert any("scored by <b>Wanda</b>" in text for text in parsed.texts)


def test_every_number_of_the_result_tables_is_a_cell(page):
    content = json.loads(json.dumps(make_report().to_dict()))
    cells = set(Parsed(page).texts)
    numbers = [
        value for x in content["per_image"].values() for s in x.values() for value in s.items()
    ]
    assert len(numbers) == 12
    for part, value in numbers:
        if part in ("mean", "median"):
            assert f"{float(value):.4g}" in cells
        elif value != "nan":
            assert any(f"{value:.4g}" in cell.split(" to ") for cell in cells)
    # The metrics are [1, 3], [4, 4.5] and [inf, 20]: means with deviations (n - 1).
    assert {"2 ± 1", "4.25 ± 0.4", "inf ± nan"} <= cells


def test_it_says_what_was_pruned_what_it_took_and_what_not_to_conclude(page):
    text = "\n".join(Parsed(page).texts)
    for told in (
        "2 layers (mlp_up)",
        "200 of 400 weights go (50.00%); whole model: 20.00% of 1,000",
        "50 for each of 2 seeds [0, 7]",
        "Zeros are not speed",
        "FID is measured on 50 images",
        "calibration, s\n1.25",
        '"mask_hash": "abc"',
        "blocks.1.up",
    ):
        assert told in text, told


def test_images_can_be_decoded_small_ones_pixel_by_pixel(page):
    images = Parsed(page).images()
    assert set(images) == {"dense", "pruned", "layers: row variation"}
    small, large, again = images["dense"]
    assert small.format == "PNG"
    assert small.size == (128, 128)
    exact = pil_to_tensor(small)[:, 8::16, 8::16]
    assert torch.equal(exact, picture(8, 1))
    assert (large.format, large.size) == ("JPEG", (256, 256))
    assert large == again
    assert images["dense"][0] != images["pruned"][0]


def test_the_page_stays_small_enough_to_send(tmp_path):
    """Noise is what compresses worst."""
    pairs = [Pair("a", "b", picture(512, seed=i), picture(512, seed=i + 99)) for i in range(24)]
    save_page(tmp_path / "report.html", make_report(), {"a": figure()}, {"pairs": pairs})
    assert (tmp_path / "report.html").stat().st_size < 4e6


def test_without_an_evaluation_the_page_says_so():
    report = make_report(dense={}, pruned={}, per_image={}, num_samples=0, seeds=())
    text = "\n".join(Parsed(page_of(report, {}, {})).texts)
    assert "Not measured" in text
    assert "FID" not in text
