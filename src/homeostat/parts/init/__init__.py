"""Initialization of whole models, by schemes as they are defined or by running the model; and of one tensor.

Random through the given generator, or torch's global one where none is given, as in torch.nn.init.
"""

from homeostat.parts.init.gains import backward_gain as backward_gain
from homeostat.parts.init.gains import gain as gain
from homeostat.parts.init.initialize import initialize_ as initialize_
from homeostat.parts.init.order import AWARE as AWARE
from homeostat.parts.init.order import SCHEMES as SCHEMES
from homeostat.parts.init.report import Initialization as Initialization
from homeostat.parts.init.report import Row as Row
from homeostat.parts.init.residual import RESIDUALS as RESIDUALS
from homeostat.parts.init.schemes import MODES as MODES
from homeostat.parts.init.schemes import Fans as Fans
from homeostat.parts.init.schemes import constant_ as constant_
from homeostat.parts.init.schemes import fan_in_uniform_ as fan_in_uniform_
from homeostat.parts.init.schemes import he_normal_ as he_normal_
from homeostat.parts.init.schemes import he_uniform_ as he_uniform_
from homeostat.parts.init.schemes import kaiming_normal_ as kaiming_normal_
from homeostat.parts.init.schemes import kaiming_uniform_ as kaiming_uniform_
from homeostat.parts.init.schemes import normal_ as normal_
from homeostat.parts.init.schemes import ones_ as ones_
from homeostat.parts.init.schemes import orthogonal_ as orthogonal_
from homeostat.parts.init.schemes import tensor_fans as tensor_fans
from homeostat.parts.init.schemes import trunc_normal_ as trunc_normal_
from homeostat.parts.init.schemes import uniform_ as uniform_
from homeostat.parts.init.schemes import variance_scaling_ as variance_scaling_
from homeostat.parts.init.schemes import xavier_normal_ as xavier_normal_
from homeostat.parts.init.schemes import xavier_uniform_ as xavier_uniform_
from homeostat.parts.init.schemes import zeros_ as zeros_
from homeostat.parts.init.targets import layer_fans as layer_fans
