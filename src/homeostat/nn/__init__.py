"""Layers with torch.nn's names and arguments on homeostat's kernels: changing the import is all it takes."""

from homeostat.nn import functional as functional
from homeostat.nn.batchnorm import BatchNorm1d as BatchNorm1d
from homeostat.nn.batchnorm import BatchNorm2d as BatchNorm2d
from homeostat.nn.batchnorm import BatchNorm3d as BatchNorm3d
from homeostat.nn.drop_connect import DropConnectConv1d as DropConnectConv1d
from homeostat.nn.drop_connect import DropConnectConv2d as DropConnectConv2d
from homeostat.nn.drop_connect import DropConnectConv3d as DropConnectConv3d
from homeostat.nn.drop_connect import DropConnectLinear as DropConnectLinear
from homeostat.nn.dropout import AlphaDropout as AlphaDropout
from homeostat.nn.dropout import Dropout as Dropout
from homeostat.nn.dropout import Dropout1d as Dropout1d
from homeostat.nn.dropout import Dropout2d as Dropout2d
from homeostat.nn.dropout import Dropout3d as Dropout3d
from homeostat.nn.dropout import DropPath as DropPath
from homeostat.nn.dropout import FeatureAlphaDropout as FeatureAlphaDropout
from homeostat.nn.dropout import GaussianDropout as GaussianDropout
from homeostat.nn.groupnorm import GroupNorm as GroupNorm
from homeostat.nn.instancenorm import InstanceNorm1d as InstanceNorm1d
from homeostat.nn.instancenorm import InstanceNorm2d as InstanceNorm2d
from homeostat.nn.instancenorm import InstanceNorm3d as InstanceNorm3d
from homeostat.nn.layernorm import LayerNorm as LayerNorm
from homeostat.nn.layernorm import RMSNorm as RMSNorm
from homeostat.nn.pooling import MaxPool2d as MaxPool2d
