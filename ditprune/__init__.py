"""Training-free pruning of Diffusion Transformers.

Vocabulary, with one meaning each: score: higher = keep. mask: True = keep. sparsity: fraction
removed. weight: [out, in]. T: timestep bins. energy: mean square of an input channel over
tokens; its root is the channel's RMS. Counts are `num_x`.
"""

from ditprune.batch_files import load_batches as load_batches
from ditprune.batch_files import save_batches as save_batches
from ditprune.folder import prune_folder as prune_folder
from ditprune.masks import MaskSet as MaskSet
from ditprune.pipeline import Outcome as Outcome
from ditprune.pipeline import prune as prune
from ditprune.recipe import Recipe as Recipe
from ditprune.recipe import best as best
from ditprune.targets import PruneTarget as PruneTarget
from ditprune.targets import Role as Role
