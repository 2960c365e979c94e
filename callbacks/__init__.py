"""When things happen in a Lightning run; how they are done is in the core."""

from ditprune.callbacks.evaluate import EvaluationCallback as EvaluationCallback
from ditprune.callbacks.granularity import GranularityCallback as GranularityCallback
from ditprune.callbacks.prediction import PredictionCallback as PredictionCallback
from ditprune.callbacks.prune import PruneCallback as PruneCallback
from ditprune.callbacks.report import ReportCallback as ReportCallback
from ditprune.callbacks.save_pretrained import SavePretrained as SavePretrained
from ditprune.callbacks.study import StudyCallback as StudyCallback
