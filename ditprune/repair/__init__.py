"""What the kept weights do about those that went."""

from ditprune.repair.base import Repair as Repair
from ditprune.repair.base import Repaired as Repaired
