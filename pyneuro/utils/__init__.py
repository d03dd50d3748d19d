# SPDX-License-Identifier: BSD-3-Clause
"""Beside the networks: torch.utils' names."""
