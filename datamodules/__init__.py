"""What flows in: calibration samples, conditions to draw, images to compare with."""

from ditprune.datamodules.calibration import CalibrationDataset as CalibrationDataset
from ditprune.datamodules.calibration import collate as collate
from ditprune.datamodules.captioned_data_set import CaptionedDataSet as CaptionedDataSet
from ditprune.datamodules.coco import COCO as COCO
from ditprune.datamodules.digits import DigitsDataModule as DigitsDataModule
from ditprune.datamodules.labels import LabelDataModule as LabelDataModule
from ditprune.datamodules.mjhq import MJHQ30K as MJHQ30K
from ditprune.datamodules.prompts import PromptDataModule as PromptDataModule
from ditprune.datamodules.shapes import ShapeLatentsDataModule as ShapeLatentsDataModule
from ditprune.datamodules.shapes import ShapesDataModule as ShapesDataModule
