"""Pictures in, upscaled pictures out."""
