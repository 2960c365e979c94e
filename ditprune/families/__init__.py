"""Kinds of models: where their prunable layers are and how to call them once."""

from ditprune.families.base import Batch as Batch
from ditprune.families.base import Condition as Condition
from ditprune.families.base import Family as Family
from ditprune.families.base import map_condition as map_condition
from ditprune.families.dit import DiT as DiT
from ditprune.families.table import Table as Table
