"""What the kept weights do about those that went."""

from ditprune.repair.admm import ADMM as ADMM
from ditprune.repair.base import Repair as Repair
from ditprune.repair.base import Repaired as Repaired
from ditprune.repair.bias import BiasCorrection as BiasCorrection
from ditprune.repair.dsnot import DSnoT as DSnoT
from ditprune.repair.kronecker import KroneckerADMM as KroneckerADMM
from ditprune.repair.least_squares import LeastSquares as LeastSquares
from ditprune.repair.sparse_gpt import SparseGPT as SparseGPT
