"""In a checkout, Python finds `configs/tuned` instead; this folder is here so that a wheel gets it, too."""
