"""In a checkout, Python finds `configs/search` instead; this folder is here so that a wheel gets it, too."""
