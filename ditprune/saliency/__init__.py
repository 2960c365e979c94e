"""What a weight is worth."""

from ditprune.saliency.base import Saliency as Saliency
from ditprune.saliency.base import Scores as Scores
from ditprune.saliency.energy import Energy as Energy
from ditprune.saliency.energy import SearchedEnergy as SearchedEnergy
from ditprune.saliency.lookahead import Lookahead as Lookahead
from ditprune.saliency.magnitude import Magnitude as Magnitude
from ditprune.saliency.optimal_brain import OBD as OBD
from ditprune.saliency.optimal_brain import OBS as OBS
from ditprune.saliency.reliability import ReliableEnergy as ReliableEnergy
from ditprune.saliency.ria import RIA as RIA
