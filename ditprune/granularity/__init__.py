"""Who competes with whom, and how many of them stay."""

from ditprune.granularity.base import Granularity as Granularity
from ditprune.granularity.base import Masks as Masks
from ditprune.granularity.base import Pools as Pools
from ditprune.granularity.base import Runs as Runs
from ditprune.granularity.clustering_aware import ClusteringAware as ClusteringAware
from ditprune.granularity.co_clusters import CoClusters as CoClusters
from ditprune.granularity.column import Column as Column
from ditprune.granularity.layer import Layer as Layer
from ditprune.granularity.nm import NofM as NofM
from ditprune.granularity.row import Row as Row
from ditprune.granularity.row_clusters import RowClusters as RowClusters
