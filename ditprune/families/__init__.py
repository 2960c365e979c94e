"""Kinds of models: where their prunable layers are and how to call them once."""

from ditprune.families.aura_flow import AuraFlow as AuraFlow
from ditprune.families.base import Batch as Batch
from ditprune.families.base import Condition as Condition
from ditprune.families.base import Family as Family
from ditprune.families.base import map_condition as map_condition
from ditprune.families.cogvideox import CogVideoX as CogVideoX
from ditprune.families.conditional import Conditional as Conditional
from ditprune.families.dit import DiT as DiT
from ditprune.families.flux import Flux as Flux
from ditprune.families.flux2 import Flux2 as Flux2
from ditprune.families.guess import Guess as Guess
from ditprune.families.hunyuan_dit import HunyuanDiT as HunyuanDiT
from ditprune.families.lumina2 import Lumina2 as Lumina2
from ditprune.families.pixart import PixArt as PixArt
from ditprune.families.qwen_image import QwenImage as QwenImage
from ditprune.families.sana import Sana as Sana
from ditprune.families.sd3 import SD3 as SD3
from ditprune.families.table import Table as Table
from ditprune.families.unet import UNet as UNet
from ditprune.families.wan import Wan as Wan
from ditprune.families.z_image import ZImage as ZImage
