import torch

from ditprune.datamodules import ShapesDataModule
from ditprune.zoo.shapes import attributes, captions, parse


def test_training_pictures_have_trained_captions_and_validation_those_held_out():
    data = ShapesDataModule(num_training_pictures=300, num_evaluation_pictures=40)
    trained = [text for batch in data.train_dataloader() for text in batch.captions]
    validated = [text for batch in data.val_dataloader() for text in batch.captions]
    assert (len(trained), len(validated)) == (300, 40)
    assert set(trained) <= set(captions(held_out=False))
    assert set(validated) <= set(captions(held_out=True))


def test_pictures_are_the_same_in_other_batches_and_processes():
    def images(**options):
        loader = ShapesDataModule(num_training_pictures=20, **options).train_dataloader()
        return torch.cat([batch.images for batch in loader])

    expected = images(batch_size=20)
    assert torch.equal(images(batch_size=7), expected)
    assert torch.equal(images(batch_size=7, num_workers=2), expected)
    assert not torch.equal(images(batch_size=20, seed=1), expected)


def test_attributes_are_those_of_the_caption():
    batch = next(iter(ShapesDataModule(batch_size=30).train_dataloader()))
    expected = [attributes(parse(text)) for text in batch.captions]
    assert batch.attributes.tolist() == expected


def test_it_calibrates_with_trained_captions_and_evaluates_with_those_held_out():
    data = ShapesDataModule(num_calibration_samples=16, num_evaluation_pictures=50)
    asked = [data.prompts[i] for i in data.evaluation_conditions(50)]
    assert sorted(asked) == sorted(captions(held_out=True)[:50])
    assert data.prompts[:16] == captions(held_out=False)[:16]


def test_references_are_pictures_in_eight_bits():
    data = ShapesDataModule(num_evaluation_pictures=150, batch_size=100)
    batches = list(data.reference_dataloader())
    assert [batch.shape for batch in batches] == [(100, 3, 64, 64), (50, 3, 64, 64)]
    assert {batch.dtype for batch in batches} == {torch.uint8}
