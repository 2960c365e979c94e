"""Feature extractors, and the metrics that keep what they extract."""

import pickle
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as their_inception
from torchmetrics import MetricCollection

from ditprune.metrics import (
    CMMD,
    ADMInceptionScore,
    DigitsClassifier,
    FeatureMetric,
    Features,
    FIDInfinity,
    FrechetDistance,
    InceptionScore,
    InceptionV3,
    KernelInceptionDistance,
    PrecisionRecall,
    SpatialFrechetDistance,
)
from ditprune.metrics.features import DIGITS_WEIGHTS
from ditprune.metrics.inception import clean
from ditprune.zoo.digits import DigitClassifier, load_split

SCORES = [InceptionScore, ADMInceptionScore]
DISTANCES = [FrechetDistance, SpatialFrechetDistance, KernelInceptionDistance, FIDInfinity, CMMD]
METRICS = [*SCORES, *DISTANCES, PrecisionRecall]
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"


def random_images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def random_features(num_images, seed=0, shift=0.0):
    noise = torch.randn(num_images, 9, generator=torch.Generator().manual_seed(seed))
    return Features(noise[:, :5] + shift, 3 * noise[:, 5:], noise[:, 2:8].square() + shift)


class Bomb:
    """A pickle that leaves a trace where it is executed."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


# The digits classifier.


def test_digits_are_read_as_the_classifier_was_trained_to_read_them():
    digits = load_split().held_out
    as_bytes = (digits.images * 127.5 + 127.5).round().byte()
    features = DigitsClassifier().extract(as_bytes)
    assert features.pool.shape == (360, 64)
    accuracy = (features.logits.argmax(1) == digits.labels).float().mean()
    assert accuracy > 0.97  # bytes that were not scaled to [-1, 1] are read less well


def test_pixels_are_scaled_to_the_ends_of_minus_one_to_one():
    extractor = DigitsClassifier()
    ends = torch.tensor([0, 255]).byte().reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    expected = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    with torch.no_grad():
        pool = extractor.network.features(expected)
        logits = extractor.network(expected)
    assert torch.equal(extractor.extract(ends).pool, pool)
    assert torch.equal(extractor.extract(ends).logits, logits)


def test_an_empty_batch_has_features_of_the_right_width():
    features = DigitsClassifier().extract(random_images(0, 1, 8, 8))
    assert (features.pool.shape, features.logits.shape) == ((0, 64), (0, 10))
    assert [len(part) for part in random_features(3).none()] == [0, 0, 0]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 9), (2, 1, 16, 16)])
def test_images_that_are_not_digits_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match=r"\(n, 1, 8, 8\); got \(2, .*InceptionV3"):
        DigitsClassifier().extract(random_images(*shape))


@pytest.mark.parametrize("content", [None, b"", b"cut off", DIGITS_WEIGHTS.read_bytes()[:-9]])
def test_missing_and_broken_weights_are_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "classifier.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"from {path}: .*weights="):
        DigitsClassifier(path).extract(random_images(1, 1, 8, 8))


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="cannot load the digits classifier"):
        _ = DigitsClassifier(tmp_path / "other.safetensors").name


def test_the_name_follows_the_weights_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    weights = DigitClassifier().state_dict()
    save_file(weights, tmp_path / "a.safetensors", {"note": "a header changes no weight"})
    save_file(weights, tmp_path / "b.safetensors")
    weights["head.bias"][0] += 1e-6
    save_file(weights, tmp_path / "c.safetensors")
    a, b, c = (DigitsClassifier(tmp_path / f"{name}.safetensors").name for name in "abc")
    assert a == b != c
    assert a.startswith("digits-classifier/")


# What surrounds an extractor must not change its features, and the other way round.


class Holder(nn.Module):
    def __init__(self, extractor):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.extractor = extractor


def test_a_module_that_holds_an_extractor_neither_counts_saves_nor_converts_it():
    images, extractor = random_images(4, 1, 8, 8), DigitsClassifier()
    before, holder = extractor.extract(images), Holder(extractor)
    holder.to(torch.bfloat16).train()
    assert list(holder.state_dict()) == ["weight"]
    after = extractor.extract(images)
    assert after.pool.dtype == torch.float32
    assert torch.equal(before.pool, after.pool)


def extract_under(context, images):
    with context:
        return DigitsClassifier().extract(images)


@pytest.mark.parametrize(
    "context",
    [
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(),
        torch.enable_grad(),
    ],
)
def test_the_precision_of_the_run_does_not_reach_the_features(context):
    images = random_images(4, 1, 8, 8)
    expected = DigitsClassifier().extract(images)
    features = extract_under(context, images)
    assert torch.equal(features.pool, expected.pool)
    assert torch.equal(features.logits, expected.logits)
    assert not features.pool.is_inference()
    assert not features.pool.requires_grad


def test_weights_loaded_while_bf16_is_the_default_are_not_rounded():
    expected = DigitsClassifier().extract(random_images(4, 1, 8, 8))
    torch.set_default_dtype(torch.bfloat16)
    try:
        features = DigitsClassifier().extract(random_images(4, 1, 8, 8))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert features.pool.dtype == torch.float32
    assert torch.equal(features.pool, expected.pool)


def test_loading_a_network_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    DigitsClassifier().extract(random_images(1, 1, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_products_keep_their_mantissa_while_the_network_runs_and_the_setting_returns():
    extractor, seen = DigitsClassifier(), []
    backend = torch.backends.cudnn.conv
    before = backend.fp32_precision

    def look(*_):
        seen.append(backend.fp32_precision)

    extractor.network.conv1.register_forward_pre_hook(look)
    extractor.extract(random_images(1, 1, 8, 8))
    assert seen == ["ieee"]
    assert backend.fp32_precision == before


# Metrics.


def compute(metric, generated, reference):
    for batch in generated:
        metric.update(batch, batch.none())
    for batch in reference:
        metric.update(batch.none(), batch)
    return metric.compute()


def rows(features, *bounds):
    return [Features(*(part[start:stop] for part in features)) for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("metric", METRICS)
def test_batches_add_up_and_the_reference_may_come_once(metric):
    generated, reference = random_features(40), random_features(30, seed=1, shift=0.5)
    expected = compute(metric(), [generated], [reference])
    assert all(type(value) is float for value in expected.values())
    assert compute(metric(), rows(generated, 0, 7, 7, 40), rows(reference, 0, 1, 30)) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_a_parent_in_bf16_neither_rounds_what_was_kept_nor_what_comes(metric):
    generated, reference = random_features(40), random_features(30, seed=1, shift=0.5)
    expected = compute(metric(), [generated], [reference])
    parent = nn.ModuleDict({"metric": metric(), "layer": nn.Linear(2, 2)})
    first, second = rows(generated, 0, 20, 40)
    parent["metric"].update(first, reference)
    parent.to(torch.bfloat16)
    assert parent["layer"].weight.dtype == torch.bfloat16
    parent["metric"].update(second, reference.none())
    assert parent["metric"].compute() == expected


def test_the_states_follow_their_parent_to_its_device():
    parent = nn.ModuleDict({"metric": FrechetDistance()})
    parent["metric"].update(random_features(4), random_features(4))
    parent.to("meta", torch.bfloat16)
    state = parent["metric"].generated_pool[0]
    assert (state.device.type, state.dtype) == ("meta", torch.float32)
    assert parent["metric"].device.type == "meta"


def test_two_ranks_compute_what_one_would():
    generated, reference = random_features(40), random_features(30, seed=1, shift=0.5)
    here, there = rows(generated, 0, 25, 40)
    away = iter([there.pool, there.logits, reference.none().pool, reference.none().logits])
    metric = FrechetDistance(
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda state, group=None: [state, next(away)],
    )
    expected = compute(FrechetDistance(), [generated], [reference])
    assert compute(metric, [here], [reference]) == expected


def test_reset_forgets_both_sets():
    metric = FrechetDistance()
    compute(metric, [random_features(20, seed=9)], [random_features(20, seed=8)])
    metric.reset()
    expected = compute(FrechetDistance(), [random_features(20)], [random_features(20, seed=1)])
    assert compute(metric, [random_features(20)], [random_features(20, seed=1)]) == expected


def test_metrics_of_a_collection_share_one_copy_of_the_features():
    generated, reference = random_features(40), random_features(30, seed=1)
    collection = MetricCollection([FrechetDistance(), InceptionScore(), PrecisionRecall()])
    collection.update(generated, reference)
    for metric in collection.values(copy_state=False):
        assert metric.generated_pool[0].data_ptr() == generated.pool.data_ptr()
    assert set(collection.compute()) == {"fid", "inception_score", "precision", "recall"}


@pytest.mark.parametrize("metric", METRICS)
def test_a_set_without_images_is_an_error_that_names_it(metric):
    some = random_features(20)
    with pytest.raises(ValueError, match="no generated images"):
        compute(metric(), [some.none()], [some])
    if metric not in SCORES:
        with pytest.raises(ValueError, match="no reference images"):
            compute(metric(), [some], [])


def test_features_of_two_extractors_are_refused_as_soon_as_they_come():
    wide, narrow = random_features(20), Features(torch.rand(20, 3), torch.rand(20, 4))
    metric = FrechetDistance()
    with pytest.raises(ValueError, match="3 and 5 features cannot be measured together"):
        metric.update(wide, narrow)
    metric.update(wide, wide.none())
    with pytest.raises(ValueError, match="3 and 5 features cannot be measured together"):
        metric.update(narrow.none(), narrow)


@pytest.mark.parametrize("metric", SCORES)
def test_scores_of_an_extractor_without_classes_are_an_error_and_not_one(metric):
    pool = torch.rand(20, 3)
    with pytest.raises(ValueError, match="this extractor knows no classes; use InceptionV3"):
        compute(metric(), [Features(pool, torch.empty(20, 0))], [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (KernelInceptionDistance(), KernelInceptionDistance(num_subsets=100)),
        (KernelInceptionDistance(num_subsets=100), KernelInceptionDistance(100, seed=1)),
        (InceptionScore(), InceptionScore(num_splits=5)),
        (InceptionScore(), InceptionScore(seed=1)),
        (InceptionScore(), ADMInceptionScore()),
        (PrecisionRecall(), PrecisionRecall(num_neighbors=5)),
        (FIDInfinity(), FIDInfinity(seed=1)),
        (FrechetDistance(), SpatialFrechetDistance()),
    ],
)
def test_settings_that_change_the_numbers_change_the_protocol(one, other):
    assert one.protocol != other.protocol
    assert one.protocol == type(one)(**settings_of(one)).protocol


def settings_of(metric):
    names = ("num_subsets", "num_splits", "num_neighbors", "seed")
    return {name: getattr(metric, name) for name in names if hasattr(metric, name)}


def test_protocols_are_named_as_the_field_names_them():
    assert FrechetDistance().protocol == "fid"
    assert KernelInceptionDistance().protocol == "kid/degree3/all"
    published = KernelInceptionDistance(num_subsets=100)
    assert published.protocol == "kid/degree3/100x1000/seed2020"
    assert PrecisionRecall(block_size=7).protocol == PrecisionRecall().protocol
    assert CMMD().protocol == "cmmd/sigma10/x1000"


def test_a_metric_that_forgets_to_compute_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        type("Forgetful", (FeatureMetric,), {})()


# Inception.


def test_an_inception_extractor_costs_nothing_until_it_is_used():
    assert "network" not in vars(InceptionV3())


def test_a_missing_weights_file_is_found_at_once_and_the_error_says_where_to_get_it(tmp_path):
    path = tmp_path / WEIGHTS_FILE
    with pytest.raises(ValueError, match=rf"no file {path}.*{their_inception.URL_INCEPTION_V3}"):
        InceptionV3(weights=str(path))


def test_without_a_network_the_error_names_the_file_the_address_and_the_way_out(
    tmp_path, monkeypatch
):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"https://.*{WEIGHTS_FILE} .*no route.*weights="):
        InceptionV3().extract(random_images(1, 3, 8, 8))


def write_zip(bomb, path):
    torch.save(bomb, path)


def write_bare_pickle(bomb, path):
    path.write_bytes(pickle.dumps(bomb, protocol=2))


@pytest.mark.parametrize("content", [b"junk", b""])
def test_a_weights_file_of_anything_else_is_named_with_what_would_do(tmp_path, content):
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"load .* from {path}: ?.+weights="):
        InceptionV3(weights=str(path)).extract(random_images(1, 3, 8, 8))


@pytest.mark.parametrize("write", [write_zip, write_bare_pickle])
def test_a_weights_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, write):
    trace, path = tmp_path / "trace", tmp_path / WEIGHTS_FILE
    write({"fc.bias": Bomb(trace)}, path)
    with pytest.raises(ValueError, match=f"refused to load .* from {path}.* could run code"):
        InceptionV3(weights=str(path)).extract(random_images(1, 3, 8, 8))
    assert not trace.exists()
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert trace.exists()  # it would have


def test_a_cached_download_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache, trace = tmp_path / "hub" / "checkpoints", tmp_path / "trace"
    cache.mkdir(parents=True)
    write_zip(Bomb(trace), cache / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=f"refused to load .*kept in {cache}"):
        InceptionV3().extract(random_images(1, 3, 8, 8))
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 cut off"])
def test_a_file_that_holds_no_weights_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"from {path}"):
        _ = InceptionV3(weights=str(path)).name


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of torch-fidelity's format, with random weights that keep activations alive."""
    path = tmp_path_factory.mktemp("inception") / WEIGHTS_FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(their_inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        network = their_inception.FeatureExtractorInceptionV3("random", ["2048"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch
    network.train()(smooth_images(4))
    torch.save(network.state_dict(), path)
    return str(path)


def smooth_images(num_images, num_channels=3):
    coarse = random_images(num_images, num_channels, 6, 6).float()
    return nn.functional.interpolate(coarse, (40, 48), mode="bilinear").byte()


def by_adm(network, images):
    """The seventeenth block by hand: what its first branch says, place by place."""
    x = images.float()
    x = their_inception.interpolate_bilinear_2d_like_tensorflow1x(
        x, (299, 299), align_corners=False
    )
    x = (x - 128) / 128
    for name, module in network.named_children():
        if name == "Mixed_6d":
            break
        x = module(x)
    x = module.branch1x1(x)
    rows = [x[:, :7, row, column] for row in range(17) for column in range(17)]
    return torch.cat(rows, dim=1)


@pytest.mark.slow
def test_inception_is_torch_fidelitys_bit_for_bit(inception_weights):
    images = smooth_images(2)
    theirs = their_inception.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], inception_weights
    )
    pool, logits = theirs(images)
    extractor = InceptionV3(inception_weights)
    features = extractor.extract(images)
    assert (features.pool.shape, features.logits.shape) == ((2, 2048), (2, 1008))
    assert features.pool.std() > 0.01
    assert torch.equal(features.pool, pool)
    assert torch.equal(features.logits, logits)
    assert torch.equal(features.spatial, by_adm(theirs, images))
    assert features.spatial.std() > 0.01
    assert not theirs.Mixed_6d.branch1x1._forward_hooks
    assert not extractor.network.Mixed_6d.branch1x1._forward_hooks
    assert extractor.name.startswith("inception-v3-compat/")
    assert extractor.name == InceptionV3(inception_weights).name


def as_pillow_resizes(images):
    """Channel by channel in floating point, cut to the range of bytes: clean-fid's protocol."""
    planes = [
        np.asarray(
            Image.fromarray(plane.float().numpy(), "F").resize((299, 299), Image.Resampling.BICUBIC)
        )
        for plane in images.flatten(0, 1)
    ]
    pixels = torch.from_numpy(np.stack(planes)).clamp(0, 255).view(*images.shape[:2], 299, 299)
    return (pixels - 128) / 128


@pytest.mark.parametrize("size", [(40, 48), (700, 600), (299, 299)])
def test_clean_pixels_are_pillows(size):
    images = random_images(2, 3, *size)
    assert torch.allclose(clean(images), as_pillow_resizes(images), atol=1e-6)
    assert clean(images[:0]).shape == (0, 3, 299, 299)


@pytest.mark.slow
def test_a_clean_inception_sees_those_pixels_and_says_so(inception_weights):
    extractor, images = (
        InceptionV3(inception_weights, resize="clean"),
        random_images(2, 3, 400, 360),
    )
    x = as_pillow_resizes(images)
    with torch.no_grad():
        for name, module in extractor.network.named_children():
            x = module(x)
            if name == "Mixed_7c":
                break
    found, plain = extractor.extract(images), InceptionV3(inception_weights)
    assert torch.allclose(found.pool, x.mean((2, 3)), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found.pool, plain.extract(images).pool, rtol=1e-2)
    assert not extractor.network.Conv2d_1a_3x3._forward_pre_hooks
    assert extractor.name.replace("clean/", "") == plain.name != extractor.name


@pytest.mark.slow
def test_inception_sees_grey_images_as_colour_and_reads_empty_batches(inception_weights):
    extractor, grey = InceptionV3(inception_weights).to("cpu"), smooth_images(2, num_channels=1)
    in_colour = extractor.extract(grey.repeat(1, 3, 1, 1))
    assert torch.equal(extractor.extract(grey).pool, in_colour.pool)
    nothing = extractor.extract(grey[:0])
    assert [part.shape for part in nothing] == [(0, 2048), (0, 1008), (0, 2023)]
    with pytest.raises(ValueError, match=r"1 or 3 channels; got the shape \(2, 4, 8, 8\)"):
        extractor.extract(random_images(2, 4, 8, 8))


@pytest.mark.slow
def test_inception_under_a_bf16_run_is_not_rounded(inception_weights):
    images, random_numbers = smooth_images(1), torch.get_rng_state()
    expected = InceptionV3(inception_weights).extract(images)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            features = InceptionV3(inception_weights).extract(images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(features.pool, expected.pool)
    assert torch.equal(features.logits, expected.logits)
    assert torch.equal(random_numbers, torch.get_rng_state())


@pytest.mark.slow
def test_weights_of_another_network_are_refused_by_inception(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"from .*other\.pth"):
        _ = InceptionV3(str(tmp_path / "other.pth")).name
