"""LetsTalk (arXiv 2411.16748): one portrait and a speech recording become a talking video."""
