"""Crops of images and feature maps, exact and differentiable, for JAX."""

from jax_crop._crop_and_resize import crop_and_resize as crop_and_resize
