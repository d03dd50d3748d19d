# SPDX-License-Identifier: BSD-3-Clause
from .kernels import *
from .tensor import *
from .tensor import Tensor, tensor
