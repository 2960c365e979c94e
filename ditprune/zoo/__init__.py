"""Models that ship with the package, and the loading of those that do not."""

from ditprune.zoo.pretrained import Pretrained as Pretrained
from ditprune.zoo.pretrained import load_pretrained as load_pretrained
