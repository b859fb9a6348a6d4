"""What the training and the test program share."""

from __future__ import annotations

import logging

from mmcv import Config
from mmcv_custom.runtime import share_handlers

from .projects import Project

logger = logging.getLogger("mmdet")


def drop_plugin(cfg: Config) -> None:
    """Takes `plugin`, `plugin_dir` out of a published config; the project is registered already."""
    if cfg.pop("plugin", None) or cfg.get("plugin_dir") is not None:
        logger.warning(
            "plugin_dir=%r of the config is not needed and not used", cfg.get("plugin_dir")
        )
    cfg.pop("plugin_dir", None)


def share_log(log: logging.Logger, project: Project) -> None:
    """Lets what the project and the shared packages log go where mmdet's log goes."""
    share_handlers(log, "mmcv", "mmcv_custom", "ad_common", project.package, "internimage")
