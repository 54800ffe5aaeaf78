"""A diffusers pipeline as a denoiser."""
