"""Lightning modules: those that trained the zoo, and one that holds a pipeline of diffusers.

They are ordinary ones, which know nothing of pruning.
"""

from ditprune.lit.denoiser import DenoiserModule as DenoiserModule
from ditprune.lit.digits import ClassifierModule as ClassifierModule
from ditprune.lit.pipeline import PipelineModule as PipelineModule
