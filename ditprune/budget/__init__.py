"""How much each layer gives."""

from ditprune.budget.base import Budget as Budget
from ditprune.budget.owl import OWL as OWL
from ditprune.budget.shared_threshold import SharedThreshold as SharedThreshold
from ditprune.budget.uniform import Uniform as Uniform
from ditprune.budget.water_filling import WaterFilling as WaterFilling
from ditprune.budget.whole_model import WholeModel as WholeModel
