"""How much each layer gives."""

from ditprune.budget.base import Budget as Budget
from ditprune.budget.base import Probe as Probe
from ditprune.budget.uniform import Uniform as Uniform
