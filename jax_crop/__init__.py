"""Crops of images and feature maps, exact and differentiable, for JAX."""

from jax_crop import boxes as boxes
from jax_crop._crop_and_resize import crop_and_resize as crop_and_resize
from jax_crop._roi_align import multilevel_roi_align as multilevel_roi_align
from jax_crop._roi_align import roi_align as roi_align

__all__ = ["boxes", "crop_and_resize", "multilevel_roi_align", "roi_align"]
