"""How good the images are: features of both sets, and the numbers made of them."""

from ditprune.metrics.base import FeatureMetric as FeatureMetric
from ditprune.metrics.features import DigitsClassifier as DigitsClassifier
from ditprune.metrics.features import FeatureExtractor as FeatureExtractor
from ditprune.metrics.features import Features as Features
from ditprune.metrics.frechet import FrechetDistance as FrechetDistance
from ditprune.metrics.frechet import frechet_distance as frechet_distance
from ditprune.metrics.inception import InceptionV3 as InceptionV3
from ditprune.metrics.inception_score import InceptionScore as InceptionScore
from ditprune.metrics.inception_score import inception_score as inception_score
from ditprune.metrics.paired import paired_errors as paired_errors
from ditprune.metrics.precision_recall import PrecisionRecall as PrecisionRecall
from ditprune.metrics.precision_recall import precision_recall as precision_recall
