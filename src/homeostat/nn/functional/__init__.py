"""torch.nn.functional's dropout, normalization and pooling on homeostat's kernels: its signatures, a few keywords."""

from homeostat.nn.functional.drop_connect import drop_connect_conv1d as drop_connect_conv1d
from homeostat.nn.functional.drop_connect import drop_connect_conv2d as drop_connect_conv2d
from homeostat.nn.functional.drop_connect import drop_connect_conv3d as drop_connect_conv3d
from homeostat.nn.functional.drop_connect import drop_connect_expectation as drop_connect_expectation
from homeostat.nn.functional.drop_connect import drop_connect_linear as drop_connect_linear
from homeostat.nn.functional.drop_connect import drop_connect_moments as drop_connect_moments
from homeostat.nn.functional.dropout import drop_path as drop_path
from homeostat.nn.functional.dropout import dropout as dropout
from homeostat.nn.functional.dropout import dropout1d as dropout1d
from homeostat.nn.functional.dropout import dropout2d as dropout2d
from homeostat.nn.functional.dropout import dropout3d as dropout3d
from homeostat.nn.functional.layer_norm import layer_norm as layer_norm
from homeostat.nn.functional.layer_norm import rms_norm as rms_norm
from homeostat.nn.functional.noise import alpha_dropout as alpha_dropout
from homeostat.nn.functional.noise import feature_alpha_dropout as feature_alpha_dropout
from homeostat.nn.functional.noise import gaussian_dropout as gaussian_dropout
from homeostat.nn.functional.norm import batch_norm as batch_norm
from homeostat.nn.functional.norm import group_norm as group_norm
from homeostat.nn.functional.norm import instance_norm as instance_norm
from homeostat.nn.functional.pooling import max_pool2d as max_pool2d
